// Promise: agents in two network namespaces move blocks both ways; when the link between them goes down, or a process stands
// still, both sides are told of the loss by missing heartbeats and every transfer ends; afterwards they meet again.
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import t, { type Test } from 'tap';
import type { SideAnswer, SideOrder } from './link-side.js';
import { needs } from './two-agents.js';

const SCRIPT = fileURLToPath(new URL('./link-side.js', import.meta.url));
const names = ['a', 'b'].map(side => `mr-${process.pid}-${side}`);
const links = ['a', 'b'].map(side => `mr${process.pid % 1_000_000}${side}`);
const hosts = ['10.213.7.1', '10.213.7.2'];
const TAGS = [11, 22];
t.setTimeout(120_000);

const ip = (...args: string[]): { status: number | null; stderr: string } =>
  spawnSync('ip', args, { encoding: 'utf8' });
const inside = (side: number, ...args: string[]): { status: number | null; stderr: string } =>
  ip('-n', names[side]!, ...args);

/** Why there can be no two namespaces here; null where there are, until `removeLink`. */
function makeLink(): string | null {
  const steps = [
    ['netns', 'add', names[0]!],
    ['netns', 'add', names[1]!],
    [
      'link',
      'add',
      links[0]!,
      'netns',
      names[0]!,
      'type',
      'veth',
      'peer',
      'name',
      links[1]!,
      'netns',
      names[1]!,
    ],
    ...[0, 1].map(side => ['-n', names[side]!, 'addr', 'add', `${hosts[side]}/24`, 'dev', links[side]!]),
    ...[0, 1].map(side => ['-n', names[side]!, 'link', 'set', links[side]!, 'up']),
  ];
  for (const step of steps) {
    const { status, stderr } = ip(...step);
    if (status !== 0) return `ip ${step.join(' ')}: ${stderr?.trim() ?? 'there is no ip'}`;
  }
  return null;
}

function removeLink(): void {
  for (const name of names) ip('netns', 'del', name);
}

/** A process of one side, and what it has said. */
class Side {
  readonly child: ChildProcess;
  readonly #said: SideAnswer[] = [];
  #wake: () => void = () => undefined;

  constructor(command: readonly string[]) {
    const [program, ...args] = command as [string, ...string[]];
    this.child = spawn(program, args, { stdio: ['ignore', 'ignore', 'inherit', 'ipc'] });
    this.child.on('message', (answer: SideAnswer) => {
      this.#said.push(answer);
      this.#wake();
    });
  }

  tell(order: SideOrder): void {
    this.child.send(order);
  }

  /** The first answer with this field, once. */
  async hears(field: keyof SideAnswer): Promise<SideAnswer> {
    for (;;) {
      const at = this.#said.findIndex(answer => answer[field] !== undefined);
      if (at >= 0) return this.#said.splice(at, 1)[0]!;
      await new Promise<void>(resolve => (this.#wake = resolve));
    }
  }

  async end(): Promise<void> {
    if (this.child.exitCode !== null || this.child.signalCode !== null) return;
    this.child.kill('SIGKILL');
    await once(this.child, 'exit');
  }
}

async function twoSides(t: Test, commandOf: (side: number) => string[]): Promise<[Side[], SideAnswer[]]> {
  const sides = [0, 1].map(
    side => new Side([...commandOf(side), process.execPath, SCRIPT, hosts[side]!, `${TAGS[side]}`]),
  );
  t.teardown(() => Promise.all(sides.map(side => side.end())));
  return [sides, await Promise.all(sides.map(side => side.hears('metadata')))];
}

/** Each connects to the other and moves all blocks from and to it. */
async function meetAndMove(t: Test, sides: Side[], said: SideAnswer[], when: string): Promise<void> {
  for (const side of [0, 1]) {
    sides[side]!.tell({ connect: said[1 - side]!.metadata! });
    await sides[side]!.hears('peer');
  }
  for (const side of [0, 1]) {
    sides[side]!.tell({ move: { pool: said[1 - side]!.pool!, tag: TAGS[1 - side]! } });
    t.equal(
      (await sides[side]!.hears('moved')).moved,
      'OK true OK',
      `${when}: from side ${1 - side} to side ${side} and back`,
    );
  }
}

const nowMs = (): number => Number(process.hrtime.bigint()) / 1e6;

/** While both move blocks, something happens that ends it. */
async function floodAnd(
  t: Test,
  sides: Side[],
  said: SideAnswer[],
  what: string,
  act: () => void,
  live: number[],
): Promise<void> {
  for (const side of [0, 1]) {
    sides[side]!.tell({ flood: said[1 - side]!.pool! });
    await sides[side]!.hears('flooding');
  }
  const actedMs = nowMs();
  act();
  for (const side of live) {
    const lost = await sides[side]!.hears('lost');
    const ended = await sides[side]!.hears('ended');
    t.same(ended.ended, ['PEER_LOST', 'PEER_LOST'], `${what}: transfers of side ${side} end`);
    const after = [lost, ended].map(({ atMs }) => `${Math.round(atMs! - actedMs)} ms`);
    t.comment(
      `${what}: side ${side} was told after ${after[0]} (${lost.lost}), its transfers ended after ${after[1]}`,
    );
  }
}

const noLink = needs('tcp').skip ?? makeLink();
t.teardown(removeLink);
t.test('two network namespaces', noLink === null ? {} : { skip: noLink }, async t => {
  const [sides, said] = await twoSides(t, side => ['ip', 'netns', 'exec', names[side]!]);
  await meetAndMove(t, sides, said, 'at first');
  await floodAnd(t, sides, said, 'link down', () => inside(0, 'link', 'set', links[0]!, 'down'), [0, 1]);
  t.equal(inside(0, 'link', 'set', links[0]!, 'up').status, 0);
  await meetAndMove(t, sides, said, 'link up again');
});

t.test('a process that stands still', needs('tcp'), async t => {
  hosts.fill('127.0.0.1');
  const [sides, said] = await twoSides(t, () => []);
  await meetAndMove(t, sides, said, 'at first');
  await floodAnd(t, sides, said, 'stopped', () => sides[1]!.child.kill('SIGSTOP'), [0]);
  sides[1]!.child.kill('SIGCONT');
  t.same(
    (await sides[1]!.hears('ended')).ended,
    ['PEER_LOST', 'PEER_LOST'],
    'the one that stood still hears of it, too',
  );
  await sides[1]!.hears('lost');
  await meetAndMove(t, sides, said, 'going on');
});
