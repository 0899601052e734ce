/** Two ends of a worker link in one process for tests: a LinkServer, a WorkerLink and an engine that writes what a test says. */
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import http from 'node:http';
import type { AddressInfo } from 'node:net';
import type { Test } from 'tap';
import { EngineClient, type EngineFault } from '#millrace/engines/client.js';
import type { EngineStream, FrameBatch } from '#millrace/engines/contract.js';
import { rowStart } from '#millrace/engines/event-rows.js';
import { FRAME } from '#millrace/engines/frame-descriptor.js';
import { createFrameScanner } from '#millrace/engines/frame-scanner.js';
import type { AnswerRequest, EngineHealth, LinkedWorker, RowSink } from '#millrace/engines/link/contract.js';
import type { LinkClient } from '#millrace/engines/link/link-client.js';
import { LINK_LIMITS, type LinkFault, type LinkLimits } from '#millrace/engines/link/link-protocol.js';
import type { LinkAddress } from '#millrace/engines/link/link-secret.js';
import { LinkServer } from '#millrace/engines/link/link-server.js';
import type { LinkTls } from '#millrace/engines/link/link-tls.js';
import { WorkerLink } from '#millrace/engines/link/worker-link.js';
import { createVllmAdapter } from '#millrace/engines/vllm.js';
import { type Clock, systemClock } from '#millrace/runtime/clock.js';
import { createLogger, type Logger } from '#millrace/runtime/logger.js';
import { seededRandom } from '#millrace/runtime/random.js';

export const SECRET = Buffer.from('a secret of more than sixteen bytes');
export const QUIET = createLogger({ level: 'silent', format: 'text' });
export const LOOPBACK: LinkAddress = { path: null, host: '127.0.0.1', port: 0, isTls: false };
export const makeNonce = (): Uint8Array => randomBytes(32);
const STREAM_LIMITS = { firstFrameBytesMax: 1 << 20, frameBytesMax: 1 << 18 };

export const CAPABILITIES: LinkedWorker['capabilities'] = {
  engine: 'vllm',
  version: '0.11.0',
  models: [
    { id: 'm', contextLength: 4096 },
    { id: 'lora', contextLength: null, adapter: true },
  ],
  blockSize: 16,
  totalBlocks: null,
  returnsTokenIds: true,
  dpRanks: 1,
};
export const WORKER: LinkedWorker = { id: 'w1', url: 'http://engine:8000', capabilities: CAPABILITIES };

/** A value that is awaited: resolves with the first `set`. */
export function signal<T>(): { readonly done: Promise<T>; set(value: T): void } {
  let set: (value: T) => void = () => {};
  const done = new Promise<T>(resolve => {
    set = resolve;
  });
  return { done, set };
}

/** The decoder of a thread. */
const adapter = createVllmAdapter({ scanner: createFrameScanner(null) });
export const openStream = (): EngineStream => adapter.openStream(STREAM_LIMITS);

/** What one call was told, decoded as an attempt does. */
export class Recorded implements RowSink {
  status = 0;
  contentType = '';
  /** Ids by choice, in order; finish reasons by choice. */
  readonly ids: number[][] = [];
  readonly finish: string[] = [];
  text = '';
  /** Token ids that came as rows of the link. */
  linkIds = 0;
  ends = 0;
  fault: EngineFault | null = null;
  readonly #over = signal<void>();
  readonly over = this.#over.done;
  readonly #onPiece: (recorded: Recorded) => void;
  #stream: EngineStream | null = null;

  constructor(onPiece: (recorded: Recorded) => void = () => {}) {
    this.#onPiece = onPiece;
  }

  onHead(status: number, contentType: string): void {
    this.status = status;
    this.contentType = contentType;
    if (contentType === 'text/event-stream') this.#stream = openStream();
  }

  onRows(batch: FrameBatch): void {
    this.linkIds += this.#take(batch);
    this.#onPiece(this);
  }

  onData(chunk: Uint8Array): void {
    this.text += Buffer.from(chunk).toString('latin1');
    const fault = this.#stream?.push(chunk, batch => this.#take(batch)) ?? null;
    if (fault !== null) throw new Error(`the stream is ${fault}`);
    this.#onPiece(this);
  }

  onEnd(): void {
    this.ends++;
    this.#over.set();
  }

  onError(fault: EngineFault): void {
    this.ends++;
    this.fault = fault;
    this.#over.set();
  }

  /** Returns the number of ids. */
  #take({ table, ids, bytes, count }: FrameBatch): number {
    let taken = 0;
    for (let row = 0; row < count; row++) {
      const at = rowStart(row);
      const choice = table[at + FRAME.choice]!;
      if (choice < 0) continue;
      const first = table[at + FRAME.idsFirst]!;
      if (first >= 0) {
        this.ids[choice] ??= [];
        this.ids[choice].push(...ids.subarray(first, first + table[at + FRAME.idsCount]!));
        taken += table[at + FRAME.idsCount]!;
      }
      const from = table[at + FRAME.finishStart]!;
      if (from < 0) continue;
      const value = Buffer.from(bytes.subarray(from, table[at + FRAME.finishEnd]!)).toString('latin1');
      this.finish[choice] = JSON.parse(value) as string;
    }
    return taken;
  }
}

/** An HTTP server whose answers a test writes; answers its origin. */
export async function startEngine(
  t: Test,
  answer: (request: http.IncomingMessage, response: http.ServerResponse, body: Buffer) => void,
): Promise<string> {
  const server = http.createServer((request, response) => {
    const chunks: Buffer[] = [];
    request.on('data', (chunk: Buffer) => chunks.push(chunk));
    request.on('end', () => answer(request, response, Buffer.concat(chunks)));
  });
  // A thousand connections come at once; those that find the backlog full would be tried again a second later.
  server.listen({ port: 0, host: '127.0.0.1', backlog: 4096 });
  await once(server, 'listening');
  t.teardown(() => {
    server.closeAllConnections();
    server.close();
  });
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
}

export const SSE = { 'content-type': 'text/event-stream' };
/** A frame of a token-mode answer, as vLLM writes it. */
export const idsFrame = (ids: readonly number[], choice = 0, finish: string | null = null): string =>
  `data: ${JSON.stringify({ id: 'x', choices: [{ index: choice, text: 'w', logprobs: null, finish_reason: finish, token_ids: ids }] })}\n\n`;
export const DONE = 'data: [DONE]\n\n';

export const ask = (path = '/v1/completions', body = '{}', wantsRows = true): AnswerRequest => ({
  origin: WORKER.url,
  method: 'POST',
  path,
  head: [['content-type', 'application/json']],
  body: Buffer.from(body),
  wantsRows,
});

export interface PlaneEnd {
  readonly server: LinkServer;
  readonly address: LinkAddress;
  /** The first link that is admitted. */
  readonly linked: Promise<LinkClient>;
  readonly events: [rank: number, batch: string | null][];
  readonly healths: EngineHealth[];
  readonly unlinked: Promise<LinkFault>;
}

export interface LinkSetup {
  readonly clock?: Clock;
  readonly limits?: Partial<LinkLimits>;
  readonly secret?: Uint8Array | null;
  readonly address?: LinkAddress;
  readonly connectionsMax?: number;
  readonly tls?: LinkTls | null;
  readonly lanes?: readonly number[];
  readonly onHealth?: () => void;
}

export async function startPlane(t: Test, setup: LinkSetup = {}): Promise<PlaneEnd> {
  const linked = signal<LinkClient>();
  const unlinked = signal<LinkFault>();
  const events: [number, string | null][] = [];
  const healths: EngineHealth[] = [];
  const server = new LinkServer({
    address: setup.address ?? LOOPBACK,
    secret: setup.secret === undefined ? SECRET : setup.secret,
    makeNonce,
    clock: setup.clock ?? systemClock,
    logger: QUIET,
    limits: { ...LINK_LIMITS, ...setup.limits },
    tls: setup.tls ?? null,
    lanes: setup.lanes ?? [],
    connectionsMax: setup.connectionsMax ?? 64,
    events: {
      onLinked: link => linked.set(link),
      onEvents: (_link, rank, batch) =>
        events.push([rank, batch === null ? null : Buffer.from(batch).toString('latin1')]),
      onHealth: (_link, health) => {
        healths.push(health);
        setup.onHealth?.();
      },
      onUnlinked: (_link, fault) => unlinked.set(fault),
    },
  });
  const address = await server.listen();
  t.teardown(() => server.close());
  return { server, address, linked: linked.done, events, healths, unlinked: unlinked.done };
}

export interface WorkerEnd {
  readonly link: WorkerLink;
  /** Faults of the engine that were told to the monitor. */
  readonly engineFaults: EngineFault[];
}

export interface WorkerSetup extends LinkSetup {
  readonly onUp?: (lanes: readonly number[]) => void;
  readonly onEventsWanted?: () => void;
  readonly onDown?: () => void;
  readonly logger?: Logger;
}

export function startWorker(
  t: Test,
  address: LinkAddress,
  origin: string,
  setup: WorkerSetup = {},
): WorkerEnd {
  const clock = setup.clock ?? systemClock;
  const client = new EngineClient({ clock, connectDeadlineMs: 30_000 });
  const engineFaults: EngineFault[] = [];
  const link = new WorkerLink({
    address,
    secret: setup.secret === undefined ? SECRET : setup.secret,
    makeNonce,
    client,
    origin,
    worker: () => WORKER,
    openStream,
    clock,
    random: seededRandom(1),
    logger: setup.logger ?? QUIET,
    limits: { ...LINK_LIMITS, ...setup.limits },
    tls: () => setup.tls ?? null,
    onUp: setup.onUp ?? (() => {}),
    onEventsWanted: setup.onEventsWanted ?? (() => {}),
    onDown: setup.onDown ?? (() => {}),
    onEngineFault: fault => engineFaults.push(fault),
  });
  link.start();
  t.teardown(async () => {
    await link.drain(0);
    await client.close();
  });
  return { link, engineFaults };
}
