// Promise: the load generator counts tokens exactly however frames are cut or merged, and calls every broken answer an error; the bench engine's frames are vLLM's.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import net from 'node:net';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { get_encoding } from 'tiktoken';

const lib = new URL('../../../bench/lib/', import.meta.url);
const { Connection } = await import(new URL('load-connection.js', lib).href);
const { promptText, TOKEN_IDS, WORDS } = await import(new URL('words.js', lib).href);

interface Answer {
  error: string | undefined;
  ttftMs: number;
}

const HEAD = 'HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n';
const chunk = (text: string) => `${text.length.toString(16)}\r\n${text}\r\n`;
const frame = (json: object) => `data: ${JSON.stringify(json)}\n\n`;
const delta = (content: string) => frame({ choices: [{ delta: { content }, finish_reason: null }] });
const ROLE = frame({ choices: [{ delta: { role: 'assistant', content: '' } }] });
const DONE = 'data: [DONE]\n\n';

/** One request against a server that answers with `bytes`, each write at most `cut` bytes long; then closes if told to. */
async function ask(bytes: string, expected: number, { cut = 1e6, close = false } = {}) {
  const server = net.createServer({ noDelay: true }, socket => {
    socket.on('error', () => {});
    socket.once('data', async () => {
      for (let at = 0; at < bytes.length; at += cut) {
        await new Promise(resolve => socket.write(bytes.slice(at, at + cut), resolve));
      }
      if (close) socket.end();
    });
  });
  await once(server.listen(0, '127.0.0.1'), 'listening');
  const target = { host: '127.0.0.1', port: (server.address() as net.AddressInfo).port, model: 'm' };
  let tokens = 0;
  const answer = await new Promise<Answer>(resolve => {
    const connection = new Connection(
      target,
      (seen: Answer) => {
        resolve(seen);
        connection.fail('the test is over');
      },
      (count: number) => {
        tokens += count;
      },
    );
    connection.send(8, expected);
  });
  server.close();
  return { ...answer, tokens };
}

t.test('tokens are counted exactly, whatever the frames and reads', async t => {
  const whole = `${HEAD}${chunk(ROLE)}${chunk(delta(' the'))}${chunk(': keep-alive\n\n')}${chunk(delta(' of and') + delta(' to'))}${chunk(DONE)}0\r\n\r\n`;
  for (const cut of [1e6, 1, 2, 3, 7, 50]) {
    t.match(
      await ask(whole, 4, { cut }),
      { error: undefined, tokens: 4, ttftMs: Number },
      `writes of ${cut} bytes`,
    );
  }
});

t.test('every broken answer is an error', async t => {
  const body = chunk(ROLE) + chunk(delta(' the'));
  const refused = 'HTTP/1.1 503 Service Unavailable\r\ncontent-length: 9\r\n\r\nno worker';
  t.match((await ask(`${HEAD}${body}${chunk(DONE)}0\r\n\r\n`, 2)).error, /1 of 2 tokens/);
  t.match((await ask(`${HEAD}${body}0\r\n\r\n`, 1)).error, /without \[DONE\]/);
  t.match((await ask(HEAD + body, 2, { close: true })).error, /closed the connection/);
  t.match((await ask(refused, 1)).error, /503: no worker/);
});

t.test('a prompt has its exact number of cl100k tokens and differs early from the next', async t => {
  const encoder = get_encoding('cl100k_base');
  t.strictSame(
    WORDS.map((word: string) => [...encoder.encode(` ${word}`)]),
    TOKEN_IDS.map((id: number) => [id]),
  );
  for (const tokens of [6, 32, 512]) t.equal(encoder.encode(promptText(tokens, 12_345)).length, tokens);
  t.not(promptText(512, 1).slice(0, 30), promptText(512, 2).slice(0, 30));
  encoder.free();
});

t.test('the bench engine speaks the parts of vLLM that the plane uses', async t => {
  const engine = spawn(process.execPath, [fileURLToPath(new URL('engine.js', lib)), '--mode', 'instant']);
  t.teardown(() => engine.kill('SIGKILL'));
  const [line] = await once(engine.stdout, 'data');
  const { url } = JSON.parse(String(line));
  const post = (path: string, body: object) =>
    fetch(url + path, { method: 'POST', body: JSON.stringify(body) });
  const events = async (response: Response) =>
    (await response.text())
      .split('\n\n')
      .filter(text => text !== '' && text !== DONE.trim())
      .map(text => JSON.parse(text.slice('data: '.length)));

  const models = (await (await fetch(`${url}/v1/models`)).json()) as { data: object[] };
  t.match(models.data[0], { id: 'bench-model', max_model_len: 131_072 });
  t.match(await (await fetch(`${url}/metrics`)).text(), /vllm:cache_config_info\{block_size="16",/);
  t.equal((await post('/v1/completions', { stream: true })).status, 400);

  const ids = {
    stream: true,
    max_tokens: 50,
    return_token_ids: true,
    stream_options: { include_usage: true },
  };
  const frames = await events(await post('/v1/completions', { ...ids, prompt: [7, 8, 9] }));
  t.equal(frames.length, 51);
  t.strictSame(frames[0].choices[0].prompt_token_ids, [7, 8, 9]);
  t.strictSame(
    frames.slice(0, 50).map(event => [event.choices[0].text, event.choices[0].token_ids, event.usage]),
    Array.from({ length: 50 }, (_, i) => [` ${WORDS[i % 48]}`, [TOKEN_IDS[i % 48]], null]),
  );
  t.equal(frames[49].choices[0].finish_reason, 'length');
  t.strictSame(frames[50].usage, { prompt_tokens: 3, total_tokens: 53, completion_tokens: 50 });

  const chat = await events(
    await post('/v1/chat/completions', { stream: true, max_completion_tokens: 2, messages: [] }),
  );
  t.equal(chat.map(event => event.choices[0].delta.content).join(''), ' the of');
  t.equal(chat[0].choices[0].delta.role, 'assistant');
  t.notOk('token_ids' in chat[1].choices[0] || 'usage' in chat[1]);
  engine.stdin.end();
  t.strictSame(await once(engine, 'exit'), [0, null], 'it ends with its stdin');
});
