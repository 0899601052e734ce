/** Reads KV events as a client of the replay socket does; its sockets close with the test. */
import type { Test } from 'tap';
import { Dealer } from 'zeromq';

/** Sequence number that ends a replay, in hex. */
export const REPLAY_END = 'ffffffffffffffff';

/** A sequence number as it is on the wire. */
export const be64 = (value: number): Buffer => {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64BE(BigInt(value));
  return bytes;
};
/** A client of a replay socket, unused so far. */
export function openDealer(t: Test, endpoint: string): Dealer {
  const dealer = new Dealer({ linger: 0, receiveHighWaterMark: 0 });
  t.teardown(() => dealer.close());
  dealer.connect(endpoint);
  return dealer;
}

/** All messages of a replay, the end marker too. */
export async function readReplay(dealer: Dealer): Promise<Buffer[][]> {
  const messages: Buffer[][] = [];
  for await (const frames of dealer) {
    messages.push(frames);
    if (frames.at(-2)!.toString('hex') === REPLAY_END) break;
  }
  return messages;
}

/** Asks for what is kept from `start` on. */
export async function replayFrom(t: Test, endpoint: string, start: number): Promise<Buffer[][]> {
  const dealer = openDealer(t, endpoint);
  await dealer.send(['', be64(start)]);
  return readReplay(dealer);
}
