/** A server of raw sockets for the tests of EngineClient, and a sink that records what a call tells it. */
import { once } from 'node:events';
import net from 'node:net';
import type { Test } from 'tap';
import {
  type AnswerSink,
  EngineClient,
  type EngineFault,
  type EngineRequest,
} from '#millrace/engines/client.js';
import { systemClock } from '#millrace/runtime/clock.js';

export const CRLF = '\r\n';
export const STREAM_HEAD = `HTTP/1.1 200 OK${CRLF}content-type: text/event-stream${CRLF}transfer-encoding: chunked${CRLF}${CRLF}`;

export interface Recorded {
  status: number;
  contentType: string;
  text: string;
  ends: number;
  fault: EngineFault | null;
  /** Resolves when the call has ended. */
  done: Promise<void>;
}

export function recorder(onData?: (recorded: Recorded) => void): { sink: AnswerSink; recorded: Recorded } {
  let finish = (): void => {};
  const done = new Promise<void>(resolve => {
    finish = resolve;
  });
  const recorded: Recorded = { status: 0, contentType: '', text: '', ends: 0, fault: null, done };
  const sink: AnswerSink = {
    onHead(status, contentType) {
      recorded.status = status;
      recorded.contentType = contentType;
    },
    onData(chunk) {
      recorded.text += Buffer.from(chunk).toString('latin1');
      onData?.(recorded);
    },
    onEnd() {
      recorded.ends++;
      finish();
    },
    onError(fault) {
      recorded.ends++;
      recorded.fault = fault;
      finish();
    },
  };
  return { sink, recorded };
}

/** Runs `answer` each time the head of a request has come; answers the origin. */
export async function serve(t: Test, answer: (socket: net.Socket, head: string) => void): Promise<string> {
  const sockets = new Set<net.Socket>();
  const server = net.createServer(socket => {
    sockets.add(socket);
    socket.on('error', () => {});
    let received = '';
    socket.on('data', bytes => {
      received += bytes.toString('latin1');
      if (!received.includes(`${CRLF}${CRLF}`)) return;
      const head = received;
      received = '';
      answer(socket, head);
    });
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.teardown(() => {
    for (const socket of sockets) socket.destroy();
    server.close();
  });
  return `http://127.0.0.1:${(server.address() as net.AddressInfo).port}`;
}

export function startClient(t: Test): EngineClient {
  const client = new EngineClient({ clock: systemClock, connectDeadlineMs: 1_000 });
  t.teardown(() => client.close());
  return client;
}

export const post = (origin: string, path = '/v1/completions'): EngineRequest => ({
  origin,
  method: 'POST',
  path,
  head: [['content-type', 'application/json']],
  body: Buffer.from('{"stream":true}'),
});
