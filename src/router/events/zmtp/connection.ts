/**
 * ZmtpConnection (R4): one socket to a ZeroMQ peer from its first byte to its end: greeting, READY, then messages, with
 * heartbeats so that a peer that is gone without a word is noticed. It reads no faster than its receiver works: what is
 * read in one turn of the event loop is bounded, and the rest waits with the peer. Owned by a connector or a listener, on
 * the thread that reads events.
 */
import { once } from 'node:events';
import { createConnection, Socket } from 'node:net';
import type { Clock, Timer } from '../../../runtime/clock.js';
import { ZmtpDecoder, type ZmtpMessage } from './decoder.js';
import type { NetAddress } from './endpoint.js';
import {
  encodeGreeting,
  encodePing,
  encodePong,
  encodeReady,
  PEER_TYPES,
  readCommand,
  readProperties,
  type SocketType,
  text,
} from './wire.js';

/** What a connection needs and whom it tells. */
export interface ZmtpConnectionOptions {
  /** What we are. */
  readonly type: SocketType;
  /** Largest frame; a longer one ends the connection. */
  readonly frameBytesMax: number;
  readonly clock: Clock;
  /** The handshake is done; the peer speaks version 3.`minor`. */
  readonly onReady: (connection: ZmtpConnection, minor: number) => void;
  /** A message; it and its bytes are valid during the call. Must not throw; may close the connection. */
  readonly onMessage: (message: ZmtpMessage) => void;
  /** It has ended, and why, in words for a log line; told once, and not after `close`. */
  readonly onEnd: (reason: string, connection: ZmtpConnection) => void;
}

/** From the first step of connecting to the end of the handshake. */
const HANDSHAKE_MS = 10_000;
/** A peer that says nothing for one to two of these is asked; one that says nothing for one more is gone. */
const HEARTBEAT_MS = 10_000;
const TCP_KEEPALIVE_IDLE_MS = 15_000;
/** Bytes read in one turn of the event loop; the read that reaches it is the last one of that turn. */
const TURN_BYTES = 64 * 1024;
/** Answers to PINGs that may wait for a peer that does not read them. */
const UNREAD_BYTES_MAX = 64 * 1024;
const PONG_CONTEXT_BYTES_MAX = 16;
const PING_TTL_BYTES = 2;
const NO_MINOR = -1;

/** See the head of the file. */
export class ZmtpConnection {
  readonly #socket: Socket;
  readonly #options: ZmtpConnectionOptions;
  readonly #decoder: ZmtpDecoder;
  /** Of the handshake, then of the heartbeats. */
  #timer: Timer;
  /** Version of the peer once it has greeted. */
  #minor = NO_MINOR;
  #isReady = false;
  #isOver = false;
  /** Since the last beat something came; it was asked for a sign of life. */
  #hasHeard = false;
  #isAsked = false;
  #turnBytes = 0;

  /** Connects to an address, or takes over a socket that a listener has accepted. */
  constructor(peer: NetAddress | Socket, options: ZmtpConnectionOptions) {
    this.#options = options;
    this.#decoder = new ZmtpDecoder({
      frameBytesMax: options.frameBytesMax,
      onGreeting: (minor, mechanism) => this.#greeted(minor, mechanism),
      onCommand: (bytes, start, end) => this.#take(bytes, start, end),
      onMessage: message => {
        if (this.#isReady) options.onMessage(message);
        else this.#end('the peer sent a message before its READY');
      },
    });
    this.#timer = options.clock.after(HANDSHAKE_MS, () =>
      this.#end(`no ZMTP handshake within ${HANDSHAKE_MS} ms`),
    );
    const socket = peer instanceof Socket ? peer : this.#connect(peer);
    this.#socket = socket;
    socket.setNoDelay(true).setKeepAlive(true, TCP_KEEPALIVE_IDLE_MS);
    // Accepted sockets cannot be told where to read to.
    if (peer instanceof Socket)
      socket.on('data', (chunk: Buffer) => {
        if (!this.#took(chunk.length, this.#decoder.push(chunk))) socket.pause();
      });
    socket
      .on('error', (error: NodeJS.ErrnoException) => this.#end(error.code ?? error.message))
      .on('close', () => this.#end('the peer closed the connection'));
    socket.write(encodeGreeting());
  }

  /** Sends bytes of wire.ts. */
  send(bytes: Uint8Array): void {
    if (!this.#isOver) this.#socket.write(bytes);
  }

  /** Nothing is told after this call; resolves when the socket is closed. */
  async close(): Promise<void> {
    this.#stop();
    if (!this.#socket.closed) await once(this.#socket, 'close');
  }

  #end(reason: string): void {
    if (this.#isOver) return;
    this.#stop();
    this.#options.onEnd(reason, this);
  }

  #stop(): void {
    this.#isOver = true;
    this.#timer.cancel();
    this.#decoder.stop();
    this.#socket.destroy();
  }

  /** The socket reads into the memory of the decoder. */
  #connect(address: NetAddress): Socket {
    const onread = {
      buffer: () => this.#decoder.room(),
      callback: (bytes: number) => this.#took(bytes, this.#decoder.advance(bytes)),
    };
    return createConnection({ ...address, onread });
  }

  /** Bytes were decoded; returns whether more may be read in this turn. */
  #took(bytes: number, fault: string | null): boolean {
    this.#hasHeard = true;
    if (fault !== null) this.#end(`the peer ${fault}`);
    if (this.#turnBytes === 0) setImmediate(this.#endTurn);
    this.#turnBytes += bytes;
    return this.#turnBytes < TURN_BYTES;
  }

  readonly #endTurn = (): void => {
    const isPaused = this.#turnBytes >= TURN_BYTES;
    this.#turnBytes = 0;
    if (isPaused && !this.#isOver) this.#socket.resume();
  };

  #greeted(minor: number, mechanism: string): void {
    if (mechanism !== 'NULL') {
      this.#end(
        `the peer wants the security mechanism ${JSON.stringify(mechanism)}; only NULL is spoken here`,
      );
      return;
    }
    this.#minor = minor;
    this.send(encodeReady(this.#options.type));
  }

  #take(bytes: Uint8Array, start: number, end: number): void {
    const command = readCommand(bytes, start, end);
    if (command === null) this.#end('the peer sent a command without a name');
    else if (command.name === 'ERROR')
      this.#end(`the peer refuses: ${JSON.stringify(text(command.data.subarray(1)))}`);
    else if (!this.#isReady) this.#handshake(command.name, command.data);
    else if (command.name === 'PING') this.#answer(command.data);
    // PONG was heard like everything else; what is not known is of no meaning to a reader.
  }

  #handshake(name: string, data: Uint8Array): void {
    const { type, clock, onReady } = this.#options;
    const properties = name === 'READY' ? readProperties(data) : null;
    if (properties === null) {
      this.#end(`the peer's handshake is none: ${JSON.stringify(name)}`);
      return;
    }
    const peer = properties.get('socket-type') ?? '';
    if (!(PEER_TYPES[type] as readonly string[]).includes(peer)) {
      this.#end(
        `the peer is a socket of type ${JSON.stringify(peer)}; one of ${PEER_TYPES[type].join(', ')} is needed`,
      );
      return;
    }
    this.#isReady = true;
    this.#timer.cancel();
    this.#timer = clock.every(HEARTBEAT_MS, () => this.#beat());
    onReady(this, this.#minor);
  }

  #answer(ping: Uint8Array): void {
    this.send(encodePong(ping.subarray(PING_TTL_BYTES, PING_TTL_BYTES + PONG_CONTEXT_BYTES_MAX)));
    if (this.#socket.writableLength > UNREAD_BYTES_MAX)
      this.#end('the peer asks and does not read our answers');
  }

  /** Peers of 3.0 know no PING: of those only the system's own keep-alive tells. */
  #beat(): void {
    if (this.#hasHeard || this.#minor < 1) this.#isAsked = false;
    else if (this.#isAsked) {
      this.#end(`the peer has not answered for ${HEARTBEAT_MS} ms`);
      return;
    } else {
      this.#isAsked = true;
      this.send(encodePing());
    }
    this.#hasHeard = false;
  }
}
