/**
 * The bytes of ZMTP 3.x, the protocol of ZeroMQ sockets (RFC 23: version 3.0, RFC 37: 3.1), with the NULL mechanism:
 *
 *     greeting   ff 8×padding 7f | 03 minor | mechanism, 20 bytes | as-server | 31 zeros        64 bytes
 *     frame      flags | size, 1 byte, or 8 big-endian with LONG | body
 *     command    a frame with COMMAND: length of the name, name, data
 *     message    one or more frames, all but the last with MORE
 *
 * Part of R4: what the readers of KV events send, and the marks by which decoder.ts reads. Pure, any thread.
 */

/** Bits of a frame's flags; the others are reserved and zero. */
export const FRAME_FLAG = { more: 1, long: 2, command: 4 } as const;

/** Bytes of a greeting. */
export const GREETING_BYTES = 64;
/** Where the parts of a greeting lie. */
export const GREETING_AT = { signatureEnd: 9, major: 10, minor: 11, mechanism: 12, asServer: 32 } as const;
/** The version that we speak, 3.1; to older peers 3.0. */
const [MAJOR, MINOR] = [3, 1];
const MECHANISM = 'NULL';

/** Types of socket that Millrace is, and of the peers that may be at the other end. */
export const PEER_TYPES = { SUB: ['PUB', 'XPUB'], DEALER: ['ROUTER', 'REP', 'DEALER'] } as const;
/** What a socket of ours says that it is. */
export type SocketType = keyof typeof PEER_TYPES;

/** A greeting of ours, without security. */
export function encodeGreeting(): Buffer {
  const greeting = Buffer.alloc(GREETING_BYTES);
  greeting[0] = 0xff;
  greeting[GREETING_AT.signatureEnd] = 0x7f;
  greeting[GREETING_AT.major] = MAJOR;
  greeting[GREETING_AT.minor] = MINOR;
  greeting.write(MECHANISM, GREETING_AT.mechanism, 'latin1');
  return greeting;
}

/** READY: ends the handshake of the NULL mechanism and says what we are. */
export function encodeReady(type: SocketType): Buffer {
  const properties = type === 'DEALER' ? [property('Socket-Type', type), property('Identity', '')] : [];
  return command('READY', properties.length > 0 ? properties : [property('Socket-Type', type)]);
}

/** Asks a publisher for what begins with `topic`: a command since 3.1, before that a message. */
export function encodeSubscribe(topic: string, minor: number): Buffer {
  const bytes = Buffer.from(topic);
  return minor >= 1 ? command('SUBSCRIBE', [bytes]) : encodeMessage([Buffer.concat([Buffer.of(1), bytes])]);
}

/**
 * PING, which a peer of 3.1 answers. Its time to live is 0: with another one the peer would hang up on us later, since we
 * send nothing while its own messages come.
 */
export function encodePing(): Buffer {
  return command('PING', [Buffer.alloc(2)]);
}

/** The answer to a PING with that context of at most 16 bytes. */
export function encodePong(context: Uint8Array): Buffer {
  return command('PONG', [context]);
}

/** A message of one or more frames. */
export function encodeMessage(frames: readonly Uint8Array[]): Buffer {
  const last = frames.length - 1;
  return Buffer.concat(
    frames.flatMap((frame, at) => [head(at < last ? FRAME_FLAG.more : 0, frame.length), frame]),
  );
}

/** A command: its name, and where its data lie in the bytes that it was read from. Null: it is none. */
export function readCommand(
  bytes: Uint8Array,
  start: number,
  end: number,
): { readonly name: string; readonly data: Uint8Array } | null {
  const data = start + 1 + (bytes[start] ?? 0);
  if (data > end || data === start + 1) return null;
  return { name: text(bytes.subarray(start + 1, data)), data: bytes.subarray(data, end) };
}

/** The properties of a READY, their names in lower case. Null: they are cut off or their sizes do not fit. */
export function readProperties(data: Uint8Array): ReadonlyMap<string, string> | null {
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  const properties = new Map<string, string>();
  for (let at = 0; at < data.length; ) {
    const name = at + 1;
    const size = name + data[at]!;
    const value = size + 4;
    if (size === name || value > data.length) return null;
    const end = value + view.getUint32(size);
    if (end > data.length) return null;
    properties.set(text(data.subarray(name, size)).toLowerCase(), text(data.subarray(value, end)));
    at = end;
  }
  return properties;
}

/** Bytes of a peer as text for a log line or a comparison. */
export const text = (bytes: Uint8Array): string =>
  Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString('latin1');

function property(name: string, value: string): Buffer {
  const size = Buffer.alloc(4);
  size.writeUInt32BE(value.length);
  return Buffer.concat([Buffer.of(name.length), Buffer.from(name), size, Buffer.from(value)]);
}

function command(name: string, data: readonly Uint8Array[]): Buffer {
  const body = Buffer.concat([Buffer.of(name.length), Buffer.from(name), ...data]);
  return Buffer.concat([head(FRAME_FLAG.command, body.length), body]);
}

function head(flags: number, bytes: number): Buffer {
  if (bytes <= 0xff) return Buffer.of(flags, bytes);
  const long = Buffer.alloc(9);
  long[0] = flags | FRAME_FLAG.long;
  long.writeBigUInt64BE(BigInt(bytes), 1);
  return long;
}
