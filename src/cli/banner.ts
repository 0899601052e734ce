/** What `millrace serve` tells a person when it is up: what runs, what was not found, and the line to try. */
import type { PlaneStatus } from '../plane/plane-status.js';

/** What the banner shows. */
export interface BannerFacts {
  readonly version: string;
  readonly url: string;
  readonly status: PlaneStatus;
  readonly policy: string;
  readonly models: readonly { readonly name: string; readonly tokenizer: string | null }[];
  readonly workers: readonly { readonly url: string; readonly rank: number | null; readonly state: string }[];
  readonly areMocks: boolean;
}

const BYTES_PER_MIB = 1_048_576;

/** `text` as one word of a POSIX shell. */
const shellWord = (text: string): string => `'${text.replaceAll("'", "'\\''")}'`;

const row = (label: string, text: string): string => `  ${label.padEnd(9)} ${text}`;

function indexLines({ kvEvents, indexBytes }: PlaneStatus): string[] {
  if (indexBytes === null) return [row('index', 'none: no policy asks what workers have cached')];
  const { publishing, workers } = kvEvents;
  const events =
    publishing === 0
      ? 'none: residency is approximated from what is routed'
      : `${publishing} of ${workers} workers publish`;
  return [row('events', events), row('index', `up to ${Math.round(indexBytes / BYTES_PER_MIB)} MiB`)];
}

/** The banner as lines of text, ready to print. */
export function banner(facts: BannerFacts): string {
  const { status, workers, models } = facts;
  const lines = [`millrace ${facts.version}: an OpenAI-compatible service at ${facts.url}`, ''];
  const shared = status.socketThreads === 1 ? '' : `, ${status.socketThreads} socket threads`;
  lines.push(row('server', (status.server === 'uws' ? 'uWebSockets.js' : 'node:http') + shared));
  if (status.serverNotice !== null) lines.push(row('', status.serverNotice));
  const { addon } = status;
  lines.push(
    row(
      'addon',
      addon.loaded ? 'native (C++)' : `none, pure JavaScript serves with one pool thread: ${addon.reason}`,
    ),
  );
  lines.push(
    row('pool', `${status.poolThreads} thread${status.poolThreads === 1 ? '' : 's'}, policy ${facts.policy}`),
  );
  const kind = facts.areMocks ? 'mock engines (no --worker was given)' : 'vLLM servers';
  lines.push(row('workers', `${workers.length} ${kind}`));
  for (const { url, rank, state } of workers)
    lines.push(row('', `${url}${rank === null ? '' : ` rank ${rank}`}  ${state}`));
  if (status.linkAddress !== null) lines.push(row('links', `millrace worker --plane ${status.linkAddress}`));
  lines.push(...indexLines(status));
  if (models.length === 0) {
    lines.push(row('models', 'none yet: no worker has answered; requests get 503 until one does'));
    return `${lines.join('\n')}\n`;
  }
  for (const [index, model] of models.entries()) {
    const mode =
      model.tokenizer === null ? 'relay mode, no tokenizer' : `token mode, tokenizer ${model.tokenizer}`;
    lines.push(row(index === 0 ? 'models' : '', `${model.name}  (${mode})`));
  }
  const body = {
    model: models[0]!.name,
    messages: [{ role: 'user', content: 'Hello' }],
    max_tokens: 32,
    stream: true,
  };
  lines.push(
    '',
    'Try it:',
    `  curl ${facts.url}/v1/chat/completions -H 'content-type: application/json' \\`,
    `    -d ${shellWord(JSON.stringify(body))}`,
  );
  return `${lines.join('\n')}\n`;
}
