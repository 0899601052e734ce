/**
 * The writer's side of bench/route.js: prompts as chains of blocks, given to an index in batches of events. As a worker it
 * fills an index, says how many prompts are in it, and then replaces prompts until it is told to stop.
 */
import { parentPort, workerData } from 'node:worker_threads';
import { SharedIndexWriter } from '#millrace/router/index/shared-index.js';
import { loadAddon } from '#millrace/runtime/addon.js';
import { namesOf } from './event-stream.js';

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

/**
 * The most blocks of a prompt that a holder can have at any moment, whatever the writer is doing.
 * @param {number} prompt
 * @param {number} holder
 */
export function mostDepth(prompt, holder, { blocks, holders }) {
  if (holder === holderOf(prompt, holders)) return blocks;
  // The prompt that begins like this one.
  const part = prompt % SHARED_PERIOD;
  const sibling = part === SHARED_PERIOD - 1 ? prompt - 1 : part === SHARED_PERIOD - 2 ? prompt + 1 : prompt;
  return holder === holderOf(sibling, holders) ? Math.ceil(blocks / 2) : 0;
}

/**
 * One prompt's events; `salt` makes other names of the same blocks, as another engine has.
 * @param {number} prompt
 */
export function eventsOf(prompt, { blocks, batchBlocks, holders }, salt = 0) {
  const hashes = chainOf(prompt, blocks);
  const names = namesOf(hashes);
  for (let at = 3; at < names.length; at += 4) names[at] += salt;
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

/** Stores one prompt's events. */
export function storeAll(writer, { holder, batches }) {
  for (const { parent, hashes, names, count } of batches)
    writer.store(holder, parent, hashes, count, 0, names);
}

/** The last blocks first, as engines evict. */
function removeAll(writer, { holder, batches }) {
  for (let n = batches.length - 1; n >= 0; n--)
    writer.removeEngine(holder, batches[n].names, batches[n].count, 0);
}

/** Stores `chains` prompts from `first` on. */
export function fill(writer, load, { first = 0, chains }) {
  for (let holder = 0; holder < load.holders; holder++) writer.addHolder(holder);
  for (let n = 0; n < chains; n++) storeAll(writer, eventsOf(first + n, load));
}

if (workerData?.memory !== undefined) {
  const { memory, settings } = workerData;
  const writer = new SharedIndexWriter(loadAddon(), memory);
  const prompts = Math.floor((writer.stats().blocksMax * 0.9) / settings.blocks);
  fill(writer, settings, { chains: prompts });
  const churn = Array.from({ length: 1000 }, (_, n) => eventsOf(n * 7, settings));
  let running = true;
  parentPort.once('message', () => {
    running = false;
    parentPort.postMessage('stopped');
  });
  const work = () => {
    if (!running) return;
    for (const events of churn) {
      removeAll(writer, events);
      storeAll(writer, events);
    }
    setImmediate(work);
  };
  parentPort.postMessage(prompts);
  work();
}
