/**
 * SGLang in prefill and decode mode (R5): both get the whole request at once, with the address of the prefill worker's
 * bootstrap server and the number of a room in which they meet. The prefill worker stops after one token by itself; its
 * answer, not a stream so that its status tells how it went, is read and dropped: one that nobody reads can hold it up. Facts: sglang/srt/disaggregation and
 * `GenerateReqInput` of sglang/srt/managers/io_struct.py, as of 2026.
 */
import { strict as assert } from 'node:assert';
import { sglangAbortCall } from '../sglang-encode.js';
import { type DisaggProtocol, type PrefillPeer, ruledOutByAll } from './contract.js';
import { rewriteObject, withFields } from './json-bytes.js';
import { bracketed } from './vllm-mooncake.js';

const DROPPED = new Set(['stream_options']);

/** See the head of the file. */
export const sglangRooms: DisaggProtocol = {
  name: 'sglang-rooms',
  engine: 'sglang',
  takesSmallerBlocks: false,
  needsSameVersion: false,
  // A server in decode mode refuses a request without a room.
  decodeComputes: false,
  order: 'parallel',
  abort: 'atOnce',
  // Each would wait for its time-out, five minutes by default; one that answers in one piece is slow to see a closed connection.
  releaseCall: sglangAbortCall,
  rulesOut: ruledOutByAll,
  stage({ prefill, decode, peer, room }) {
    assert(Number.isSafeInteger(room) && room >= 0, 'a room is a number that JSON keeps');
    const meeting = [
      ['bootstrap_host', JSON.stringify(bracketed(peer.host))],
      ['bootstrap_port', String(peer.port)],
      ['bootstrap_room', String(room)],
    ] as const;
    return {
      prefill: rewriteObject(prefill.body, DROPPED, [...meeting, ['stream', 'false']]),
      decode: withFields(decode.body, [...meeting, ...prefillRank(peer)]),
    };
  },
  next: () => assert.fail('the answer to an SGLang prefill is not read'),
};

/** Without it decode takes room modulo ranks for the rank that has the prompt. */
function prefillRank({ rank }: PrefillPeer): (readonly [string, string])[] {
  return rank === null ? [] : [['disagg_prefill_dp_rank', String(rank)]];
}
