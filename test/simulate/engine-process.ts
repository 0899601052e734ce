/** Mock engines in processes of their own, started as a user does, for tests that stop and kill them. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync, readFileSync } from 'node:fs';
import { createInterface } from 'node:readline';
import type { Test } from 'tap';

const module = import.meta.resolve('#millrace/cli/mock.js');
const script = `const { command } = await import(${JSON.stringify(module)});
process.exitCode = await command.run(process.argv.slice(1));`;
const FLAGS = ['--tiny', '--disagg', '--json', '--exit-with-stdin', '--speed', 'unlimited'];
const SHAPE = ['--block-size', '16', '--blocks', '64'];

const STOP_DEADLINE_MS = 10_000;

/** A tiny engine with a connector, like those of `startTiny`. */
export interface EngineProcess {
  readonly child: ChildProcess;
  readonly url: string;
  /** Where its side channel is. */
  readonly side: string;
}

/** Starts one with more flags; it is killed when the test ends. */
export async function startProcess(t: Test, ...flags: string[]): Promise<EngineProcess> {
  const argv = ['--input-type=module', '-e', script, '--', ...FLAGS, ...SHAPE, ...flags];
  const child = spawn(process.execPath, argv, { stdio: ['pipe', 'pipe', 'inherit'] });
  t.teardown(() => child.kill('SIGKILL'));
  const [line] = (await once(createInterface(child.stdout!), 'line')) as [string];
  const said = JSON.parse(line) as { url: string; kvSideChannel: string; engineId: string };
  t.match(said, { kvSideChannel: /^http:\/\/127\.0\.0\.1:\d+$/, engineId: /^[0-9a-f-]{36}$/ });
  return { child, url: said.url, side: said.kvSideChannel };
}

/** Stops a process, and returns when none of its threads runs any more. Linux only. */
export function stop({ pid }: ChildProcess): void {
  process.kill(pid!, 'SIGSTOP');
  const tasks = `/proc/${pid}/task`;
  const isStopped = (thread: string): boolean => {
    const stat = readFileSync(`${tasks}/${thread}/stat`, 'latin1');
    return stat.slice(stat.lastIndexOf(')') + 2).startsWith('T');
  };
  const endMs = performance.now() + STOP_DEADLINE_MS;
  while (!readdirSync(tasks).every(isStopped))
    if (performance.now() > endMs) throw new Error(`process ${pid} runs on`);
}

/** Kills a process and waits until it is gone. */
export async function kill(child: ChildProcess): Promise<void> {
  const gone = once(child, 'exit');
  child.kill('SIGKILL');
  await gone;
}
