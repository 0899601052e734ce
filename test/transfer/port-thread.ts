// A thread that has no agent, only a port: makes random transfers between a range of blocks of two pools and keeps a model of
// what each block must hold; says after each round that it was right. Ends when it has done its rounds, or is terminated.
import { parentPort, workerData } from 'node:worker_threads';
import { randomInteger, seededRandom } from '#millrace/runtime/random.js';
import {
  openTransferPort,
  type PortDescription,
  type PortPlan,
  type PostOptions,
  TransferError,
} from '#millrace/transfer/index.js';

/** What a thread is told. */
export interface PortThreadData {
  readonly description: PortDescription;
  readonly seed: number;
  readonly rounds: number;
  readonly peer: number;
  readonly nearPool: number;
  readonly farPool: number;
  /** Its blocks in both pools. */
  readonly firstBlock: number;
  readonly blocks: number;
  readonly blockBytes: number;
  /** Whether it spins for some completions, which takes a processor from the others. */
  readonly maySpin: boolean;
}

interface Posted {
  readonly isRead: boolean;
  readonly local: number[];
  readonly remote: number[];
  readonly plan: PortPlan;
}

const data = workerData as PortThreadData;
const random = seededRandom(data.seed);
const port = openTransferPort(data.description);
const bytes = new Uint8Array(port.openPool(data.nearPool), data.firstBlock * data.blockBytes);
// What each block must hold, all bytes alike.
const near = new Array<number>(data.blocks).fill(0);
const far = new Array<number>(data.blocks).fill(0);

function fill(block: number): void {
  near[block] = randomInteger(random, 256);
  bytes.fill(near[block]!, block * data.blockBytes, (block + 1) * data.blockBytes);
}

function check(block: number): void {
  const part = bytes.subarray(block * data.blockBytes, (block + 1) * data.blockBytes);
  if (!part.every(byte => byte === near[block]))
    throw new Error(`block ${block} holds ${part[0]}, not ${near[block]}`);
}

function plan(isRead: boolean, local: number[], remote: number[]): Posted {
  const named = (blocks: number[]): number[] => blocks.map(block => block + data.firstBlock);
  return {
    isRead,
    local,
    remote,
    plan: port.plan({
      peer: data.peer,
      direction: isRead ? 'read' : 'write',
      local: { pool: data.nearPool, blocks: named(local) },
      remote: { pool: data.farPool, blocks: named(remote) },
    }),
  };
}

/** Lists over different blocks, so that transfers of one round do not meet. */
function someTransfers(): Posted[] {
  const order = Array.from({ length: data.blocks }, (_, i) => i);
  for (let i = order.length - 1; i > 0; i--) {
    const other = randomInteger(random, i + 1);
    [order[i], order[other]] = [order[other]!, order[i]!];
  }
  const posted: Posted[] = [];
  for (let at = 0; at < data.blocks; ) {
    const count = Math.min(1 + randomInteger(random, 4), data.blocks - at);
    const list = order.slice(at, at + count);
    posted.push(plan(random() < 0.5, list, list.toReversed()));
    at += count;
  }
  return posted;
}

/** The code that it ended with, or 'OK'. */
function apply({ isRead, local, remote }: Posted, code: string): void {
  if (code === 'OK')
    local.forEach((block, i) => {
      if (isRead) near[block] = far[remote[i]!]!;
      else far[remote[i]!] = near[block]!;
    });
  else if (code !== 'CANCELLED') throw new Error(`ended as ${code}`);
  else {
    // Any part of it may have been moved: make both sides known again.
    local.forEach(fill);
    again.push(plan(false, local, remote));
  }
}

const again: Posted[] = [];
const codeOf = (error: unknown): string => {
  if (error instanceof TransferError) return error.code;
  throw error;
};

async function awaited(posted: Posted[], options: PostOptions): Promise<void> {
  const controller = new AbortController();
  const signal = random() < 0.3 ? controller.signal : undefined;
  const codes = posted.map(({ plan }) =>
    port.post(plan, signal === undefined ? options : { ...options, signal }).then(() => 'OK', codeOf),
  );
  if (random() < 0.5) controller.abort();
  const ended = await Promise.all(codes);
  posted.forEach((one, i) => {
    apply(one, ended[i]!);
  });
}

function polled(posted: Posted[], options: PostOptions): void {
  const mayBlock = !data.maySpin || random() < 0.7;
  const byId = new Map(posted.map(one => [port.submit(one.plan, options), one]));
  if (byId.has(0) || byId.size !== posted.length) throw new Error('each has a number');
  if (random() < 0.3) for (const id of byId.keys()) port.cancel(id);
  while (byId.size > 0) {
    const completion = mayBlock ? port.wait(60_000) : port.poll();
    if (completion === null) {
      if (mayBlock) throw new Error('nothing has completed');
      continue;
    }
    const one = byId.get(completion.id)!;
    byId.delete(completion.id);
    if (completion.error === null && completion.bytes !== one.local.length * data.blockBytes)
      throw new Error(`${completion.bytes} bytes were moved`);
    apply(one, completion.error === null ? 'OK' : completion.error.code);
  }
}

function someOptions(): PostOptions {
  return {
    integrity: (['off', 'sample', 'full'] as const)[randomInteger(random, 3)]!,
    reader: (['unknown', 'soon', 'later'] as const)[randomInteger(random, 3)]!,
    priority: randomInteger(random, 256),
    ...(random() < 0.2 ? { deadlineMs: 60_000 } : {}),
    ...(random() < 0.2 ? { notification: new Uint8Array(1 + randomInteger(random, 99)) } : {}),
  };
}

async function known(): Promise<void> {
  while (again.length > 0) {
    const one = again.pop()!;
    await port.post(one.plan);
    apply(one, 'OK');
  }
}

const all = Array.from({ length: data.blocks }, (_, i) => i);
all.forEach(fill);
again.push(plan(false, all, all));
await known();
for (let round = 0; round < data.rounds; round++) {
  for (let block = 0; block < data.blocks; block++) if (random() < 0.3) fill(block);
  if (random() < 0.5) await awaited(someTransfers(), someOptions());
  else polled(someTransfers(), someOptions());
  await known();
  all.forEach(check);
  parentPort!.postMessage('right');
}
// What lies on the other side, seen from here.
const back = plan(true, all, all);
await port.post(back.plan);
apply(back, 'OK');
all.forEach(check);
if (random() < 0.5) await port.close();
parentPort!.postMessage('done');
