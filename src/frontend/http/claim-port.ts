/**
 * Finds the port that several servers of this process will share (R1). A shared port is open to every process of the same
 * user, so a second `millrace serve` would join it in silence: an exclusive listener that comes first shows that the port
 * is free, and chooses one where the system shall choose. Used by the core, once, before the servers listen.
 */
import { once } from 'node:events';
import { type AddressInfo, createServer } from 'node:net';
import { ConfigError } from '../../errors.js';

/** The port, free a moment ago; port 0 lets the system choose. Rejects with ConfigError when the address is taken. */
export async function claimPort(host: string, port: number): Promise<number> {
  const server = createServer();
  server.listen({ host, port, exclusive: true });
  try {
    await once(server, 'listening');
  } catch (cause) {
    const { code, message } = cause as NodeJS.ErrnoException;
    throw new ConfigError(`cannot listen on ${host}:${port}: ${code ?? message}`, { cause });
  }
  const claimed = (server.address() as AddressInfo).port;
  server.close();
  await once(server, 'close');
  return claimed;
}
