// Promise: a wait ends when rung, at its deadline and at close, and does not begin when there is work.
import t from 'tap';
import { Bell, BellRinger, createBell } from '#millrace/ring/bell.js';
import { BELL } from '#millrace/ring/ring-descriptor.js';
import { RingMemory } from '#millrace/ring/ring-memory.js';
import { ManualClock } from '#millrace/runtime/clock.js';

function open() {
  const memory = new RingMemory(createBell('test'));
  const clock = new ManualClock();
  return { memory, clock, bell: new Bell(memory, clock), ringer: new BellRinger(memory) };
}
const idle = (): boolean => false;
// A wait on a bell does not hold the event loop; in a server its sockets do.
const hold = setInterval(() => {}, 1000);
t.teardown(() => clearInterval(hold));

t.test('rung', async t => {
  const { memory, bell, ringer, clock } = open();
  for (let turn = 0; turn < 3; turn++) {
    const wait = bell.wait(idle, 50);
    t.equal(memory.load(BELL.sleeping), 1);
    ringer.ring();
    t.equal(await wait, 'rung');
    t.equal(memory.load(BELL.sleeping), 0);
  }
  t.equal(clock.nextInMs(), null, 'no timer is left');
});

t.test('work that is there, and work that comes while going to sleep', async t => {
  const { memory, bell, ringer } = open();
  t.equal(await bell.wait(() => true), 'rung');
  const rungWhileLooking = (): boolean => {
    ringer.ring();
    return false;
  };
  t.equal(await bell.wait(rungWhileLooking), 'rung');
  t.equal(memory.load(BELL.sleeping), 0);
});

t.test('deadline', async t => {
  const { bell, clock, memory } = open();
  const wait = bell.wait(idle, 50);
  clock.advance(49);
  t.equal(memory.load(BELL.sleeping), 1);
  clock.advance(1);
  t.equal(await wait, 'timeout');
});

t.test('close', async t => {
  const { bell } = open();
  const wait = bell.wait(idle);
  await t.rejects(bell.wait(idle), /one wait at a time/);
  bell.close();
  t.equal(await wait, 'closed');
  t.equal(await bell.wait(() => true), 'closed');
});
