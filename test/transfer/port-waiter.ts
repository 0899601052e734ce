// A thread that fills its port again and again and blocks until something completes, until it is terminated.
import { parentPort, workerData } from 'node:worker_threads';
import { openTransferPort, type PortDescription, type PortPlanOptions } from '#millrace/transfer/index.js';

const { description, plan } = workerData as { description: PortDescription; plan: PortPlanOptions };
const port = openTransferPort(description);
const words = port.plan(plan);
for (let told = false; ; told = true) {
  while (port.submit(words) !== 0);
  port.wait(60_000);
  if (!told) parentPort!.postMessage('blocks');
}
