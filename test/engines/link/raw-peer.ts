/** A peer of a worker link that speaks byte by byte: it does the handshake and then what a test tells it, right or wrong. */
import { once } from 'node:events';
import net from 'node:net';
import type { Test } from 'tap';
import type { LinkedWorker } from '#millrace/engines/link/contract.js';
import { type LinkFrame, LinkReader, payloadOf } from '#millrace/engines/link/frame-reader.js';
import { LinkWriter } from '#millrace/engines/link/frame-writer.js';
import { PlaneHandshake, WorkerHandshake } from '#millrace/engines/link/link-handshake.js';
import { decodeRefusal } from '#millrace/engines/link/link-messages.js';
import { LINK_KIND, LINK_LIMITS, type LinkFault } from '#millrace/engines/link/link-protocol.js';
import type { LinkAddress } from '#millrace/engines/link/link-secret.js';
import { LOOPBACK, makeNonce, SECRET, WORKER } from './link-fixture.js';

/** A frame that was received, as values. */
export interface Got {
  readonly kind: number;
  readonly stream: number;
  readonly payload: Buffer;
}

const CAPABILITIES = 3;

export class RawPeer {
  readonly socket: net.Socket;
  readonly writer = new LinkWriter();
  /** Frames in order, PINGs left out; they are not answered. */
  readonly got: Got[] = [];
  refusal: LinkFault | null = null;
  readonly closed: Promise<unknown>;
  readonly #reader = new LinkReader(LINK_LIMITS.frameBytesMax);
  #onGot: (() => void) | null = null;

  constructor(t: Test, socket: net.Socket) {
    this.socket = socket;
    this.closed = new Promise(resolve => socket.once('close', resolve));
    socket.on('error', () => {});
    socket.on('data', chunk => {
      const problem = this.#reader.push(chunk, frame => this.#take(frame));
      if (problem !== null) throw new Error(problem);
    });
    t.teardown(() => socket.destroy());
  }

  /** Sends what the writer holds. */
  flush(): void {
    const bytes = this.writer.take();
    if (bytes !== null) this.socket.write(bytes);
  }

  send(kind: number, stream = 0, payload: Uint8Array = new Uint8Array(0), flags = 0): void {
    this.writer.frame(kind, flags, stream, [payload]);
    this.flush();
  }

  /** The first frame of `kind` that has come or comes. */
  async until(kind: number): Promise<Got> {
    for (;;) {
      const found = this.got.find(one => one.kind === kind);
      if (found !== undefined) return found;
      if (this.socket.closed) throw new Error(`closed before kind ${kind}: ${this.refusal?.message}`);
      await Promise.race([
        new Promise<void>(resolve => {
          this.#onGot = resolve;
        }),
        this.closed,
      ]);
    }
  }

  #take(frame: LinkFrame): void {
    const { kind, stream } = frame;
    if (kind === LINK_KIND.ping) return;
    if (kind === LINK_KIND.refuse) this.refusal = decodeRefusal(payloadOf(frame));
    this.got.push({ kind, stream, payload: Buffer.from(payloadOf(frame)) });
    this.#onGot?.();
  }
}

/** Connects to a plane and does nothing else. */
export async function connectRaw(t: Test, { host, port }: LinkAddress): Promise<RawPeer> {
  const socket = net.connect(port, host!);
  await once(socket, 'connect');
  return new RawPeer(t, socket);
}

/** Connects to a plane as a worker side that it admits. */
export async function linkRaw(
  t: Test,
  address: LinkAddress,
  worker: LinkedWorker = WORKER,
  capabilities = CAPABILITIES,
): Promise<RawPeer> {
  const peer = await connectRaw(t, address);
  const handshake = new WorkerHandshake({ secret: SECRET, capabilities, nonce: makeNonce() });
  peer.send(LINK_KIND.hello, 0, handshake.hello());
  const { payload } = await peer.until(LINK_KIND.challenge);
  const { ok } = handshake.register(payload, { worker, bodyWindowBytes: LINK_LIMITS.bodyWindowBytes });
  peer.send(LINK_KIND.register, 0, ok!.bytes);
  await peer.until(LINK_KIND.welcome);
  return peer;
}

/** Listens as a plane: each worker side that connects is admitted and handed on. */
export async function listenRaw(
  t: Test,
  onLinked: (peer: RawPeer) => void,
  welcome: readonly number[] = [LINK_LIMITS.answerWindowBytes],
): Promise<LinkAddress> {
  const admit = async (peer: RawPeer): Promise<void> => {
    const handshake = new PlaneHandshake({ secret: SECRET, capabilities: CAPABILITIES, nonce: makeNonce() });
    const { ok } = handshake.challenge((await peer.until(LINK_KIND.hello)).payload);
    peer.send(LINK_KIND.challenge, 0, ok!.bytes);
    handshake.admit((await peer.until(LINK_KIND.register)).payload);
    peer.writer.frame(LINK_KIND.welcome, 0, 0, [new Uint8Array(Uint32Array.from(welcome).buffer)]);
    peer.flush();
    onLinked(peer);
  };
  // A peer that leaves in the middle is what some tests want.
  const server = net.createServer(socket => void admit(new RawPeer(t, socket)).catch(() => {}));
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.teardown(() => server.close());
  return { ...LOOPBACK, port: (server.address() as net.AddressInfo).port } as LinkAddress;
}
