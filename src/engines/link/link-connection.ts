/**
 * LinkConnection (R5): what both sides of a worker link share: the socket, frames in and out, one write per turn of the
 * event loop, heartbeats, and one end. It knows kinds only of what belongs to no side: PING, PONG, REFUSE and those that
 * it does not know. Owned by a PlaneLink or a LinkClient, on its thread; all I/O of a link is here.
 */
import type { Socket } from 'node:net';
import { TLSSocket } from 'node:tls';
import { RecordError } from '../../messages/byte-reader.js';
import type { Clock, Timer } from '../../runtime/clock.js';
import { type LinkFrame, LinkReader, payloadOf } from './frame-reader.js';
import { LinkWriter } from './frame-writer.js';
import { decodeRefusal, encodeRefusal } from './link-messages.js';
import {
  LINK_FLAG,
  LINK_KIND,
  type LinkFault,
  type LinkFaultKind,
  type LinkLimits,
} from './link-protocol.js';

/** What a connection needs of its side. Nothing is called after `onClosed`. */
export interface LinkConnectionOptions {
  /** Connected or connecting; a TLSSocket of the worker side is connecting. */
  readonly socket: Socket;
  readonly clock: Clock;
  readonly limits: LinkLimits;
  /** A frame of the side. False: the side does not know its kind. May throw RecordError for what the peer sent. */
  readonly onFrame: (frame: LinkFrame) => boolean;
  /** Once, whatever ended it. */
  readonly onClosed: (fault: LinkFault) => void;
  /** `isCongested` begins: what can wait should, from now on. */
  readonly onCongested?: () => void;
  /** The unsent bytes are below the bound again after `isCongested`. */
  readonly onDrain?: () => void;
  /** Where its bytes and frames are counted, with those of other connections. */
  readonly traffic?: LinkTraffic;
}

/** Bytes and frames of connections, as this side sees them, heads and TLS not counted. */
export interface LinkTraffic {
  bytesIn: number;
  bytesOut: number;
  framesIn: number;
  framesOut: number;
}

/** Time that unsent bytes of a connection that has ended may still take. */
const LINGER_MS = 1_000;
const NO_PARTS: readonly Uint8Array[] = [];

/** See the head of the file. */
export class LinkConnection {
  readonly #options: LinkConnectionOptions;
  readonly #reader: LinkReader;
  readonly #writer = new LinkWriter();
  #fault: LinkFault | null = null;
  #isFlushDue = false;
  #isCongested = false;
  #handshakeTimer: Timer;
  #pinger: Timer | null = null;
  #pongTimer: Timer | null = null;
  #pings = 0;
  /** Frames that were written, of those that the writer has made. */
  #framesOut = 0;

  constructor(options: LinkConnectionOptions) {
    const { socket, clock, limits } = options;
    this.#options = options;
    this.#reader = new LinkReader(limits.handshakeBytesMax);
    this.#handshakeTimer = clock.after(limits.handshakeDeadlineMs, () =>
      this.fail('handshake', `the handshake took longer than ${limits.handshakeDeadlineMs} ms`),
    );
    let isConnected = !socket.connecting;
    socket.once(socket instanceof TLSSocket ? 'secureConnect' : 'connect', () => {
      isConnected = true;
    });
    socket.setNoDelay(true);
    socket.on('data', chunk => this.#onData(chunk as Buffer));
    socket.on('drain', () => this.#onDrain());
    socket.on('end', () => this.#end({ kind: 'closed', message: 'the other side closed the link' }));
    socket.on('close', () => this.#end({ kind: 'closed', message: 'the connection of the link closed' }));
    socket.on('error', error => {
      const code = (error as NodeJS.ErrnoException).code ?? error.message;
      if (socket instanceof TLSSocket && !isConnected && socket.authorizationError != null)
        this.#end({ kind: 'auth', message: `the certificate of the plane is not accepted: ${code}` });
      else this.#end({ kind: isConnected ? 'closed' : 'unreachable', message: `connection error ${code}` });
    });
  }

  /** Why it ended; null while it is open. */
  get fault(): LinkFault | null {
    return this.#fault;
  }

  /** More than the bound is unsent: what can wait should. `onDrain` says when it is over. */
  get isCongested(): boolean {
    return this.#isCongested;
  }

  /** Bytes that the peer has not taken yet. */
  get unsentBytes(): number {
    return this.#options.socket.writableLength + this.#writer.size;
  }

  /** The handshake is over: long frames are allowed and heartbeats begin. */
  establish(): void {
    const { clock, limits } = this.#options;
    this.#handshakeTimer.cancel();
    this.#reader.frameBytesMax = limits.frameBytesMax;
    this.#pinger = clock.every(limits.pingPeriodMs, () => this.#ping());
  }

  /** Sends a frame of the parts; they are copied. */
  send(kind: number, stream: number, parts: readonly Uint8Array[] = NO_PARTS, flags = 0): void {
    if (this.#fault !== null) return;
    this.#writer.frame(kind, flags, stream, parts);
    this.#flushLater();
  }

  /** Sends a frame of one word. */
  sendWord(kind: number, stream: number, value: number): void {
    if (this.#fault !== null) return;
    this.#writer.word(kind, stream, value);
    this.#flushLater();
  }

  /** Adds ids of a stream to the STEP of this turn. Returns the bytes that they take there; 0 once the connection has ended. */
  sendEntry(
    stream: number,
    choice: number,
    finish: number,
    ids: Uint32Array,
    first: number,
    count: number,
  ): number {
    if (this.#fault !== null) return 0;
    this.#flushLater();
    return this.#writer.entry(stream, choice, finish, ids, first, count);
  }

  /** Tells the peer why and ends the connection. */
  fail(kind: LinkFaultKind, message: string): void {
    if (this.#fault !== null) return;
    this.send(LINK_KIND.refuse, 0, [encodeRefusal({ kind, message })]);
    this.#flush();
    this.#end({ kind, message });
  }

  /** Writes what was said and closes in good order. */
  close(): void {
    if (this.#fault !== null) return;
    this.#flush();
    this.#end({ kind: 'closed', message: 'the link was closed on this side' });
  }

  #onData(chunk: Uint8Array): void {
    if (this.#fault !== null) return;
    const { traffic } = this.#options;
    const framesBefore = this.#reader.frames;
    try {
      const problem = this.#reader.push(chunk, this.#takeFrame);
      if (problem !== null) this.fail('protocol', problem);
    } catch (error) {
      if (!(error instanceof RecordError)) throw error;
      this.fail('protocol', error.message);
    }
    if (traffic === undefined) return;
    traffic.bytesIn += chunk.length;
    traffic.framesIn += this.#reader.frames - framesBefore;
  }

  readonly #takeFrame = (frame: LinkFrame): void => {
    if (frame.kind === LINK_KIND.ping) this.send(LINK_KIND.pong, 0, [payloadOf(frame)]);
    else if (frame.kind === LINK_KIND.pong) this.#onPong(frame);
    else if (frame.kind === LINK_KIND.refuse) this.#end(decodeRefusal(payloadOf(frame)));
    else if (!this.#options.onFrame(frame) && (frame.flags & LINK_FLAG.critical) !== 0)
      this.fail('protocol', `a frame of kind ${frame.kind}, which must be understood, is not known here`);
  };

  #ping(): void {
    // One at a time: the deadline runs from the oldest ping without an answer.
    if (this.#pongTimer !== null) return;
    const { clock, limits } = this.#options;
    this.#pings = (this.#pings + 1) >>> 0;
    this.sendWord(LINK_KIND.ping, 0, this.#pings);
    this.#pongTimer = clock.after(limits.pongDeadlineMs, () =>
      this.fail('heartbeat', `no answer to a heartbeat within ${limits.pongDeadlineMs} ms`),
    );
  }

  #onPong(frame: LinkFrame): void {
    const isDue = this.#pongTimer !== null && frame.end - frame.start === 4;
    if (!isDue || frame.view.getUint32(frame.start, true) !== this.#pings) {
      this.fail('protocol', 'an answer to a heartbeat that was not sent');
      return;
    }
    this.#pongTimer?.cancel();
    this.#pongTimer = null;
  }

  /** All that is said in this turn of the event loop leaves in one write. */
  #flushLater(): void {
    if (this.#isFlushDue) return;
    this.#isFlushDue = true;
    setImmediate(() => {
      this.#isFlushDue = false;
      this.#flush();
    });
  }

  #flush(): void {
    if (this.#fault !== null) return;
    const bytes = this.#writer.take();
    if (bytes === null) return;
    const { socket, limits, traffic } = this.#options;
    socket.write(bytes);
    if (traffic !== undefined) {
      traffic.bytesOut += bytes.length;
      traffic.framesOut += this.#writer.frames - this.#framesOut;
      this.#framesOut = this.#writer.frames;
    }
    if (this.#isCongested || socket.writableLength <= limits.sendQueueBytesMax) {
      if (socket.writableLength > limits.unsentBytesMax)
        this.#end({ kind: 'closed', message: `the other side leaves ${limits.unsentBytesMax} bytes unread` });
      return;
    }
    this.#isCongested = true;
    this.#options.onCongested?.();
  }

  #onDrain(): void {
    if (!this.#isCongested || this.#fault !== null) return;
    this.#isCongested = false;
    this.#options.onDrain?.();
  }

  #end(fault: LinkFault): void {
    if (this.#fault !== null) return;
    this.#fault = fault;
    this.#reader.stop();
    this.#handshakeTimer.cancel();
    this.#pinger?.cancel();
    this.#pongTimer?.cancel();
    const { socket, clock, onClosed } = this.#options;
    // What was written, a refusal at the last, still leaves; a peer that does not read is cut off.
    const linger = clock.after(LINGER_MS, () => socket.destroy());
    socket.once('close', () => linger.cancel());
    socket.destroySoon();
    onClosed(fault);
  }
}
