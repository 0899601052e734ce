/**
 * Where and how a plane takes worker links (R5), read from its configuration: address, secret and TLS, for the connection
 * that registers a worker and for the lane of each socket thread. Reads files; any thread.
 */
import { randomBytes } from 'node:crypto';
import { readFileSync } from 'node:fs';
import type { Config } from '../config.js';
import { NONCE_BYTES } from '../engines/link/link-protocol.js';
import {
  type LinkAddress,
  laneAddress,
  parseLinkAddress,
  parseSecret,
  requireTrust,
} from '../engines/link/link-secret.js';
import { LinkServer, type LinkServerOptions } from '../engines/link/link-server.js';
import { type LinkTls, readLinkTls } from '../engines/link/link-tls.js';
import { ConfigError } from '../errors.js';

/** A link that comes again may overlap with the one before. */
const CONNECTIONS_PER_WORKER = 2;

/** Where links are taken, and from whom. */
export interface LinkAccess {
  readonly address: LinkAddress;
  readonly secret: Uint8Array | null;
  /** Null: the address has none. */
  readonly tls: LinkTls | null;
}

/**
 * The secret of a worker link: what the file holds, else `text`; null without both. `fileSource` and `textSource` name
 * them in messages. Throws ConfigError.
 */
export function readLinkSecret(
  file: string | null,
  fileSource: string,
  text: string | null,
  textSource: string,
): Uint8Array | null {
  if (file === null) return text === null ? null : parseSecret(text, textSource);
  try {
    return parseSecret(readFileSync(file, 'utf8'), fileSource);
  } catch (cause) {
    if (cause instanceof ConfigError) throw cause;
    const { code } = cause as NodeJS.ErrnoException;
    throw new ConfigError(`${fileSource} ${file} cannot be read: ${code}`, { cause });
  }
}

/** Where links are taken; null: nowhere. Throws ConfigError for what cannot be used, with several socket threads too. */
export function linkAccess(config: Config): LinkAccess | null {
  const { linkListen, linkSecretFile, linkSecret, linkTlsCert, linkTlsKey, linkTlsCa, socketThreads } =
    config;
  if (linkListen === null) return null;
  const address = parseLinkAddress(linkListen, 'linkListen');
  const secret = readLinkSecret(linkSecretFile, 'linkSecretFile', linkSecret, 'MILLRACE_LINK_SECRET');
  const tls = readLinkTls(
    { name: linkTlsCert, source: 'linkTlsCert' },
    { name: linkTlsKey, source: 'linkTlsKey' },
    { name: linkTlsCa, source: 'linkTlsCa' },
  );
  if (address.isTls && tls?.cert == null)
    throw new ConfigError(`linkListen is '${linkListen}', which needs linkTlsCert and linkTlsKey`);
  if (!address.isTls && tls !== null)
    throw new ConfigError(`linkTlsCert and linkTlsCa need linkListen with tls://; it is '${linkListen}'`);
  requireTrust('plane', address, secret, tls);
  // Throws where the last one has no room.
  if (socketThreads > 1) laneListen(address, socketThreads - 1);
  return { address, secret, tls };
}

/** Where socket thread `index` takes its lanes: the next ports, or any where the system chooses. */
function laneListen(address: LinkAddress, index: number): LinkAddress {
  const port = address.port === 0 ? 0 : address.port + 1 + index;
  return laneAddress(address, index, port);
}

/** Makes the server of the connections that register workers. Throws ConfigError. */
export function createLinkServer(
  access: LinkAccess,
  config: Config,
  options: Pick<LinkServerOptions, 'clock' | 'logger' | 'events' | 'lanes'>,
): LinkServer {
  return new LinkServer({
    ...access,
    ...options,
    makeNonce: () => randomBytes(NONCE_BYTES),
    connectionsMax: config.limits.workersMax * CONNECTIONS_PER_WORKER,
  });
}

/** Makes the server of the lanes to socket thread `index`; null where no links are taken. Throws ConfigError. */
export function createLaneServer(
  index: number,
  config: Config,
  options: Pick<LinkServerOptions, 'clock' | 'logger'>,
): LinkServer | null {
  const access = linkAccess(config);
  if (access === null) return null;
  const nothing = (): void => {};
  // Who is there and how it does, the connection that named the lane tells.
  const events = { onLinked: nothing, onEvents: nothing, onHealth: nothing, onUnlinked: nothing };
  const address = laneListen(access.address, index);
  return createLinkServer({ ...access, address }, config, { ...options, events, lanes: [] });
}
