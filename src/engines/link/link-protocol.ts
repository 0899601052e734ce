/**
 * The bytes of a worker link (R5): one connection, unix socket or TCP, between the link process beside an engine (the
 * worker side) and a socket thread of a data plane (the plane side). It carries all streams of that engine to that
 * thread, its KV events and its health. All numbers are little-endian; the worker side connects.
 *
 *     worker                              plane
 *       HELLO      versions, capabilities, nonce ──▶
 *       ◀── CHALLENGE  version, nonce, proof of the plane         (REFUSE and close at any point instead)
 *       REGISTER   proof of the worker, engine, models ──▶
 *       ◀── WELCOME    window of an answer, lanes
 *       ◀── OPEN BODY* ─── CREDIT ──▶  HEAD (STEP | DATA)* (END | FAIL) ──▶   ◀── CREDIT, CANCEL      per stream
 *       EVENTS, HEALTH ──▶      ◀── PING, PONG, GOAWAY ──▶                                            stream 0
 *
 * A frame is a header of 16 bytes, `length` bytes of payload and 0 to 3 bytes of nothing, so that every frame starts at
 * a multiple of 4 and token ids are read where they lie:
 *
 *     byte  0        4      6       8        12         16
 *           length   kind   flags   stream   sequence   payload …
 *           u32      u16    u16     u32      u32
 *
 * `sequence` counts the frames of one direction from 0 and wraps at 2^32: a frame that is lost, doubled or repeated from
 * elsewhere is a protocol error. `stream` is 0 for what belongs to no stream. A kind that is not known is an error where
 * its flag `critical` is set, and skipped where it is not. A STEP holds all ids that the streams of one connection got in
 * one turn of the worker's event loop; its payload is a row of entries, several of one stream in order, and what came
 * together for one choice in one entry:
 *
 *     byte  0        4        5        6       8
 *           stream   choice   finish   count   ids: count × u32
 *           u32      u8       u8       u16
 *
 * **Credit** bounds memory on both sides. DATA and STEP entries (with their 8 bytes) of a stream use up the credit that
 * the plane gives: WELCOME says how much a stream begins with, CREDIT adds to it as bytes reach their reader. BODY uses
 * credit of the worker in the same way. Whoever sends more than it has breaks the protocol, and the connection closes.
 * **Streams** are numbered by the plane, rising from 1, never used twice. Each OPEN gets exactly one END or FAIL, after
 * a CANCEL too. **Proofs** are HMAC-SHA256 with the shared secret over the handshake so far, with the side's own name in
 * front, so that neither can be used as the other; they say who is there. They do not hide the frames that follow, which
 * TLS around the connection does.
 * **Lanes.** WELCOME is the window (u32) and, where both sides have the capability, one u32 for each lane: a plane with
 * several socket threads has a lane of its own to each, at that port of the same host, or beside the plane's unix socket,
 * where the word is 0. The worker side opens them all, each with a handshake of its own. Their streams go over them, and
 * nothing else: KV events and health stay on the connection whose WELCOME named them, which then carries no streams.
 */

/** Versions that this build speaks, both ends included. */
export const LINK_VERSION = { min: 1, max: 1 } as const;
/** First word of HELLO: "MRLK". */
export const LINK_MAGIC = 0x4b4c524d;

/** Bits of the capabilities in HELLO; CHALLENGE answers with those that both have. */
export const LINK_CAPABILITY = {
  /** Ids of many streams in STEP frames; without it answers are relayed as bytes only. */
  steps: 1,
  /** KV events. */
  events: 2,
  /** Lanes; without it the streams of a plane with several socket threads go over HTTP. */
  lanes: 4,
} as const;
/** What this build offers, on both sides. */
export const LINK_CAPABILITIES = LINK_CAPABILITY.steps | LINK_CAPABILITY.events | LINK_CAPABILITY.lanes;
/** Most lanes of a plane. */
export const LANES_MAX = 64;

/** Bytes of a frame before its payload. */
export const LINK_HEADER_BYTES = 16;
/** Every frame starts at a multiple of this. */
export const LINK_ALIGN_BYTES = 4;
/** Byte offsets of the header. */
export const LINK_HEADER = { length: 0, kind: 4, flags: 6, stream: 8, sequence: 12 } as const;

/** The kinds of frames. */
export const LINK_KIND = {
  hello: 1,
  challenge: 2,
  register: 3,
  welcome: 4,
  refuse: 5,
  /** Plane → worker. */
  open: 8,
  body: 9,
  cancel: 10,
  /** Both ways: u32 bytes that may be sent in addition. */
  credit: 11,
  /** Worker → plane. */
  head: 16,
  step: 17,
  data: 18,
  end: 19,
  fail: 20,
  events: 24,
  health: 25,
  /** Both ways. */
  ping: 32,
  pong: 33,
  /** No new streams; those that run go on. */
  goaway: 34,
} as const;

/** Flags of a frame. */
export const LINK_FLAG = {
  /** Of OPEN: ids are wanted as rows where the engine streams them. */
  rows: 1,
  /** Of EVENTS: no batch; everything of the rank before is void. */
  cleared: 2,
  /** The frame must be understood. */
  critical: 0x8000,
} as const;

/** Bytes of a STEP entry before its ids. */
export const STEP_ENTRY_BYTES = 8;
/** Byte offsets of a STEP entry. */
export const STEP_ENTRY = { stream: 0, choice: 4, finish: 5, count: 6 } as const;
/** Highest choice and most ids of a STEP entry; what is beyond travels as DATA. */
export const STEP_CHOICE_MAX = 0xff;
/** See STEP_CHOICE_MAX. */
export const STEP_IDS_MAX = 0xffff;
/** Longest payload of OPEN, HEAD and FAIL: they are not bounded by credit. */
export const HEAD_BYTES_MAX = 262_144;
/** Payload at which a STEP frame is ended and another one begun. */
export const STEP_BYTES_MAX = 65_536;

/** Finish codes of a STEP entry, by index: what an engine says, and 0 for a choice that goes on. */
export const FINISH_CODES = ['', 'stop', 'length', 'tool_calls', 'content_filter', 'abort'] as const;

/**
 * Why a stream failed, by code.
 * - unreachable, reset, protocol, aborted: the faults of EngineClient, between the worker side and its engine.
 * - overloaded: the worker side took no more; the engine saw nothing of the request.
 */
export const LINK_FAILS = ['unreachable', 'reset', 'protocol', 'aborted', 'overloaded'] as const;
/** One of LINK_FAILS. */
export type LinkFail = (typeof LINK_FAILS)[number];

/** Why a connection ended; `protocol` and `heartbeat` close it from this side, a refusal tells the other side. */
export const LINK_FAULTS = [
  'closed',
  'unreachable',
  'heartbeat',
  'handshake',
  'protocol',
  'version',
  'auth',
  'refused',
  'draining',
] as const;
/** One of LINK_FAULTS. */
export type LinkFaultKind = (typeof LINK_FAULTS)[number];

/** How a connection ended; the message is for operators. */
export interface LinkFault {
  readonly kind: LinkFaultKind;
  readonly message: string;
}

/** Highest stream number; a link that reaches it takes no new streams and is made anew. */
export const STREAM_ID_MAX = 0xffff_ffff;

/** Bytes of a nonce and of a proof. */
export const NONCE_BYTES = 32;
/** See NONCE_BYTES. */
export const PROOF_BYTES = 32;
/** Shortest secret, in bytes: half a proof can still not be guessed. */
export const SECRET_BYTES_MIN = 16;
/** Longest secret, in bytes. */
export const SECRET_BYTES_MAX = 4096;

/** Bounds of one side of a link, all counts, bytes and milliseconds. */
export interface LinkLimits {
  /** Payload of one frame after the handshake; a longer batch of KV events clears its rank. */
  readonly frameBytesMax: number;
  /** Payload of one frame before the peer has proved itself. */
  readonly handshakeBytesMax: number;
  /** Streams of one connection at a time, those that were cancelled and have not ended included. */
  readonly streamsMax: number;
  /** Credit of an answer at its begin (plane) and of a request body (worker). At least STEP_BYTES_MAX. */
  readonly answerWindowBytes: number;
  readonly bodyWindowBytes: number;
  /** One request body, and all bodies that a worker side holds. A longer one goes over HTTP: here all streams would wait. */
  readonly bodyBytesMax: number;
  readonly bodiesBytesMax: number;
  /** Unsent bytes from which the engine streams pause until the socket has drained. */
  readonly sendQueueBytesMax: number;
  /** Unsent bytes at which a peer that asks and does not read is cut off. */
  readonly unsentBytesMax: number;
  /** Unsent bytes from which KV events are dropped and their ranks begun anew. */
  readonly eventQueueBytesMax: number;
  /** Each side pings at this period; no answer within the deadline closes the connection. */
  readonly pingPeriodMs: number;
  readonly pongDeadlineMs: number;
  /** From the connection to WELCOME. */
  readonly handshakeDeadlineMs: number;
  /** From a CANCEL to the end of its stream. */
  readonly cancelDeadlineMs: number;
  /** Wait before the worker side connects again: doubles from the first to the last. */
  readonly backOffFirstMs: number;
  readonly backOffMaxMs: number;
}

const KIB = 1024;
const MIB = 1024 * KIB;

/** The bounds in use. */
export const LINK_LIMITS: LinkLimits = Object.freeze({
  frameBytesMax: 17 * MIB,
  handshakeBytesMax: 256 * KIB,
  streamsMax: 16_384,
  answerWindowBytes: 256 * KIB,
  bodyWindowBytes: 64 * KIB,
  bodyBytesMax: 4 * MIB,
  bodiesBytesMax: 256 * MIB,
  sendQueueBytesMax: 4 * MIB,
  unsentBytesMax: 512 * MIB,
  eventQueueBytesMax: 64 * MIB,
  pingPeriodMs: 2_000,
  pongDeadlineMs: 6_000,
  handshakeDeadlineMs: 5_000,
  cancelDeadlineMs: 30_000,
  backOffFirstMs: 100,
  backOffMaxMs: 5_000,
});

/** Bytes that a frame with a payload of `length` bytes takes on the wire. */
export function frameSpanBytes(length: number): number {
  return LINK_HEADER_BYTES + length + (-length & (LINK_ALIGN_BYTES - 1));
}
