// Promise: the addon's core reads and writes nothing outside of its arrays, for random and damaged input.
import { spawnSync } from 'node:child_process';
import t from 'tap';

const shortRun =
  process.env.MILLRACE_TEST_LONG === '1' ? {} : { skip: 'compiles C++: part of npm run test:long' };

t.test('under the address and undefined-behaviour sanitizers', shortRun, async t => {
  const result = spawnSync(process.execPath, ['native/test/run.mjs', 'core', '500000'], { encoding: 'utf8' });
  t.comment(result.stdout);
  t.equal(result.status, 0, result.stderr);
});
