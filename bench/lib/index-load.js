/**
 * The writer's side of bench/route.js: prompts as chains of blocks, given to an index in batches of events. As a worker it
 * fills an index, says how many prompts are in it, and then replaces prompts until it is told to stop.
 */
import { parentPort, workerData } from 'node:worker_threads';
import { SharedIndexWriter } from '#millrace/router/index/shared-index.js';
import { loadAddon } from '#millrace/runtime/addon.js';

/** Every fourth prompt begins like the one before it, for half of its length. */
const SHARED_PERIOD = 4;

const mix = (value, salt) => {
  let mixed = Math.imul(value ^ salt, 0x9e3779b1) ^ (value >>> 15);
  mixed = Math.imul(mixed ^ (mixed >>> 13), 0x85ebca6b);
  return (mixed ^ (mixed >>> 16)) >>> 0;
};

/**
 * The sequence hashes of a prompt: two words per block.
 * @param {number} prompt
 * @param {number} blocks
 */
export function chainOf(prompt, blocks) {
  const hashes = new Uint32Array(blocks * 2);
  for (let block = 0; block < blocks; block++) {
    const owner = prompt % SHARED_PERIOD === SHARED_PERIOD - 1 && block < blocks / 2 ? prompt - 1 : prompt;
    hashes[block * 2] = mix(owner * 4099 + block, 0x1234567);
    hashes[block * 2 + 1] = mix(owner ^ (block << 21), 0x7654321);
  }
  return hashes;
}

const holderOf = (prompt, holders) => mix(prompt, 99) % holders;

/** The engine's own names of the blocks. */
function namesOf(hashes) {
  const names = new Uint32Array(hashes.length * 2);
  for (let at = 0; at < hashes.length; at += 2)
    names.set([hashes[at + 1], hashes[at], ~hashes[at], 5], at * 2);
  return names;
}

/** One prompt's events, made before the clock runs. */
function eventsOf(prompt, { blocks, batchBlocks, holders }) {
  const hashes = chainOf(prompt, blocks);
  const names = namesOf(hashes);
  const batches = [];
  for (let from = 0; from < blocks; from += batchBlocks) {
    const count = Math.min(batchBlocks, blocks - from);
    batches.push({
      parent: from === 0 ? null : { low: hashes[from * 2 - 2], high: hashes[from * 2 - 1] },
      hashes: hashes.subarray(from * 2, (from + count) * 2),
      names: names.subarray(from * 4, (from + count) * 4),
      count,
    });
  }
  return { holder: holderOf(prompt, holders), batches };
}

function storeAll(writer, { holder, batches }) {
  for (const { parent, hashes, names, count } of batches)
    writer.store(holder, parent, hashes, count, 0, names);
}

/** The last blocks first, as engines evict. */
function removeAll(writer, { holder, batches }) {
  for (let n = batches.length - 1; n >= 0; n--)
    writer.removeEngine(holder, batches[n].names, batches[n].count, 0);
}

/**
 * Stores `chains` prompts from `first` on, and removes them again when told so; only the calls are timed.
 * @returns {{ storeBlocksPerSecond: number, removeBlocksPerSecond: number }}
 */
export function fill(writer, settings, { first = 0, chains, remove }) {
  const GROUP = 500;
  for (let holder = 0; holder < settings.holders; holder++) writer.addHolder(holder);
  const spentMs = { store: 0, remove: 0 };
  for (const [kind, apply] of [['store', storeAll], ...(remove ? [['remove', removeAll]] : [])]) {
    for (let from = 0; from < chains; from += GROUP) {
      const group = Array.from({ length: Math.min(GROUP, chains - from) }, (_, n) =>
        eventsOf(first + from + n, settings),
      );
      const startMs = performance.now();
      for (const events of group) apply(writer, events);
      spentMs[kind] += performance.now() - startMs;
    }
  }
  const perSecond = ms => (ms === 0 ? 0 : (chains * settings.blocks) / (ms / 1000));
  return { storeBlocksPerSecond: perSecond(spentMs.store), removeBlocksPerSecond: perSecond(spentMs.remove) };
}

if (workerData?.memory !== undefined) {
  const { memory, settings } = workerData;
  const writer = new SharedIndexWriter(loadAddon(), memory);
  const prompts = Math.floor((writer.stats().blocksMax * 0.9) / settings.blocks);
  fill(writer, settings, { chains: prompts, remove: false });
  const churn = Array.from({ length: 1000 }, (_, n) => eventsOf(n * 7, settings));
  let running = true;
  let blocks = 0;
  let spentMs = 0;
  parentPort.once('message', () => {
    running = false;
    parentPort.postMessage({ blocksPerSecond: blocks / (spentMs / 1000) });
  });
  const work = () => {
    if (!running) return;
    const startMs = performance.now();
    for (const events of churn) {
      removeAll(writer, events);
      storeAll(writer, events);
      blocks += 2 * settings.blocks;
    }
    spentMs += performance.now() - startMs;
    setImmediate(work);
  };
  parentPort.postMessage(prompts);
  work();
}
