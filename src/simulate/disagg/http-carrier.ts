/**
 * Carries blocks between mock engines of any processes over their side channels. A body of blocks has its length in front,
 * leaves page by page as the socket takes it, and goes straight into the pages of the puller. One per engine, on its thread.
 *
 *     POST /pull KvAsk → 200 pages, one after the other | 409 {"error":"…"}
 */
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { KvPages } from '../tiny/kv-pages.js';
import {
  HandoverError,
  type KvAsk,
  type KvCarrier,
  type KvNotice,
  type KvPeer,
  type KvRead,
  type KvSource,
} from './kv-carrier.js';
import {
  readJson,
  refusalOf,
  refuse,
  SideChannel,
  type SideChannelOptions,
  whenGone,
} from './side-channel.js';

/** What a carrier needs. */
export interface HttpCarrierOptions extends SideChannelOptions {
  /** Null for an engine that only models its KV. */
  readonly pages: KvPages | null;
}

/** See the head of the file. */
export class HttpCarrier implements KvCarrier {
  readonly #channel: SideChannel;
  readonly #pages: KvPages | null;

  private constructor(channel: SideChannel, pages: KvPages | null) {
    this.#channel = channel;
    this.#pages = pages;
  }

  /** Opens the side channel. Rejects with the reason when it cannot listen. */
  static async open(options: HttpCarrierOptions): Promise<HttpCarrier> {
    const { source, pages } = options;
    const channel = await SideChannel.open(options, {
      'POST /pull': (incoming, outgoing) => servePull(incoming, outgoing, source, pages),
    });
    return new HttpCarrier(channel, pages);
  }

  get host(): string {
    return this.#channel.host;
  }

  get port(): number {
    return this.#channel.port;
  }

  async pull(peer: KvPeer, ask: KvAsk, into: readonly number[], signal: AbortSignal): Promise<void> {
    const both = AbortSignal.any([signal, this.#channel.closed]);
    try {
      const answer = await this.#channel.post(peer, '/pull', ask, both);
      if (answer.statusCode !== 200) throw await refusalOf(answer);
      await fill(answer, into, this.#pages);
    } catch (error) {
      both.throwIfAborted();
      throw error instanceof HandoverError ? error : new HandoverError((error as Error).message);
    }
  }

  notify(peer: KvPeer, key: string, notice: KvNotice): void {
    this.#channel.notify(peer, key, notice);
  }

  close(): Promise<void> {
    return this.#channel.close();
  }
}

/** Writes the body into the pages, block after block. */
async function fill(answer: IncomingMessage, into: readonly number[], pages: KvPages | null): Promise<void> {
  const blockBytes = pages?.blockBytes ?? 0;
  const wanted = into.length * blockBytes;
  let at = 0;
  for await (const chunk of answer as AsyncIterable<Buffer>) {
    if (at + chunk.length > wanted) throw new HandoverError(`the peer sent over ${wanted} bytes`);
    for (let from = 0; from < chunk.length; ) {
      const offset = at % blockBytes;
      const piece = chunk.subarray(from, from + blockBytes - offset);
      pages!.bytesOf(into[Math.floor(at / blockBytes)]!).set(piece, offset);
      at += piece.length;
      from += piece.length;
    }
  }
  if (at < wanted) throw new HandoverError(`the peer sent ${at} of ${wanted} bytes`);
}

async function servePull(
  incoming: IncomingMessage,
  outgoing: ServerResponse,
  source: KvSource,
  pages: KvPages | null,
): Promise<void> {
  const gone = whenGone(outgoing);
  let read: KvRead;
  try {
    read = await source.read(await readJson<KvAsk>(incoming), gone);
  } catch (error) {
    refuse(outgoing, 409, error);
    return;
  }
  try {
    await send(outgoing, read, pages, gone);
  } finally {
    read.end();
  }
}

/** Sends the pages of a read, and waits for the puller to have taken them or gone. */
async function send(
  outgoing: ServerResponse,
  read: KvRead,
  pages: KvPages | null,
  gone: AbortSignal,
): Promise<void> {
  const whenOver = new Promise<void>(resolve => {
    if (gone.aborted) resolve();
    else gone.addEventListener('abort', () => resolve(), { once: true });
  });
  outgoing.writeHead(200, { 'content-length': read.blocks.length * (pages?.blockBytes ?? 0) });
  outgoing.flushHeaders();
  for (let at = 0; at < Math.min(read.blocks.length, read.stallAfter) && pages !== null; at++) {
    // A copy: the socket keeps it for longer than the pin may last.
    const isTaken = outgoing.write(Buffer.from(pages.bytesOf(read.blocks[at]!)));
    if (!isTaken) await Promise.race([new Promise(resolve => outgoing.once('drain', resolve)), whenOver]);
    if (gone.aborted) return;
  }
  if (read.stallAfter >= read.blocks.length) outgoing.end();
  await whenOver;
}
