// What a committed result of a long test says of where it was made.
import { execFileSync } from 'node:child_process';
import os from 'node:os';

/** The machine and the commit. */
export function machineFacts(): object {
  return {
    machine: {
      cpu: os.cpus()[0]?.model,
      cores: os.cpus().length,
      kernel: os.release(),
      node: process.version,
      loadAverage: os.loadavg().map(load => Number(load.toFixed(1))),
    },
    commit: execFileSync('git', ['rev-parse', 'HEAD'], { encoding: 'utf8' }).trim(),
  };
}
