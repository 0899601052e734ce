/**
 * Who may link (R5): addresses, the shared secret, the proofs of it and the rule that no link leaves the host without a
 * secret or TLS. A proof is HMAC-SHA256 over the name of the side that makes it and the handshake so far, each with its
 * length in front, so that no two handshakes give the same bytes. Pure.
 */
import { createHmac, timingSafeEqual } from 'node:crypto';
import { isIP } from 'node:net';
import { ConfigError } from '../../errors.js';
import { PROOF_BYTES, SECRET_BYTES_MAX, SECRET_BYTES_MIN } from './link-protocol.js';
import type { LinkTls } from './link-tls.js';

/** The two sides; each proves itself under its own name. */
export type LinkSide = 'worker' | 'plane';

/** Where a link goes: a unix socket or a host and port, these two with or without TLS. */
export type LinkAddress =
  | { readonly path: string; readonly host: null; readonly port: 0; readonly isTls: false }
  | { readonly path: null; readonly host: string; readonly port: number; readonly isTls: boolean };

const HOST_PORT = /^(?:\[([0-9a-fA-F:]+)\]|([^\s:/]+)):(\d{1,5})$/;
const TLS = 'tls://';
const PORT_MAX = 65_535;
/** Longest path of a unix socket on Linux, in bytes. */
const PATH_BYTES_MAX = 107;

/** Reads `HOST:PORT`, `tls://HOST:PORT` or `unix:/path`; `source` names the setting. Throws ConfigError. */
export function parseLinkAddress(text: string, source: string): LinkAddress {
  if (text.startsWith('unix:')) {
    const path = text.slice('unix:'.length);
    if (path.startsWith('/') && Buffer.byteLength(path) <= PATH_BYTES_MAX)
      return { path, host: null, port: 0, isTls: false };
  } else {
    const isTls = text.startsWith(TLS);
    const match = HOST_PORT.exec(isTls ? text.slice(TLS.length) : text);
    const port = Number(match?.[3] ?? -1);
    if (match !== null && port >= 0 && port <= PORT_MAX)
      return { path: null, host: (match[1] ?? match[2])!, port, isTls };
  }
  throw new ConfigError(
    `${source} is '${text}'; allowed: HOST:PORT or tls://HOST:PORT with a port from 0 to ${PORT_MAX}, or unix:/path of at most ${PATH_BYTES_MAX} bytes`,
    { param: source },
  );
}

/**
 * Where lane `index`, from 0, of the plane at `address` is: a socket beside its own, `path.1` for the first, or `port` of
 * the same host. Throws ConfigError where there is no such socket or port.
 */
export function laneAddress(address: LinkAddress, index: number, port: number): LinkAddress {
  const { path } = address;
  if (path === null && port <= PORT_MAX) return { ...address, port };
  const lane = `${path}.${index + 1}`;
  if (path !== null && Buffer.byteLength(lane) <= PATH_BYTES_MAX) return { ...address, path: lane };
  throw new ConfigError(
    `worker links at ${showLinkAddress(address)} need one more socket or port for each socket thread; there is no ${path === null ? `port ${port}` : `path ${lane}, which is longer than ${PATH_BYTES_MAX} bytes`}`,
  );
}

/** The address as it is written. */
export function showLinkAddress({ path, host, port, isTls }: LinkAddress): string {
  if (path !== null) return `unix:${path}`;
  return `${isTls ? TLS : ''}${host.includes(':') ? `[${host}]` : host}:${port}`;
}

/** True for unix sockets and for addresses that no other host can reach. A name other than localhost is not trusted. */
export function isLocalAddress({ path, host }: LinkAddress): boolean {
  return path !== null || isLocalHost(host);
}

/** As `isLocalAddress`, for a host. */
export function isLocalHost(host: string): boolean {
  return host === 'localhost' || host === '::1' || (isIP(host) === 4 && host.startsWith('127.'));
}

/**
 * Throws ConfigError where `address` leaves the host and `side` could not tell who is at the other end: it needs the
 * secret, or TLS. A plane knows a worker by TLS only where it asks for a certificate, which its CA does.
 */
export function requireTrust(
  side: LinkSide,
  address: LinkAddress,
  secret: Uint8Array | null,
  tls: LinkTls | null,
): void {
  const isKnown = address.isTls && (side === 'worker' || (tls !== null && tls.ca !== null));
  if (secret !== null || isKnown || isLocalAddress(address)) return;
  const name = showLinkAddress(address);
  throw new ConfigError(
    address.isTls
      ? `a plane that takes worker links at ${name} does not know who connects: name the CA of the workers' certificates (--link-tls-ca), or give both sides one secret`
      : `a worker link at ${name} leaves this host: give both sides one secret (--secret-file and --link-secret-file, or MILLRACE_LINK_SECRET), use TLS (tls://HOST:PORT), or use unix:/path or 127.0.0.1`,
  );
}

/** The secret in a text, without the line end that editors append. `source` names where it is from. Throws ConfigError. */
export function parseSecret(text: string, source: string): Uint8Array {
  const secret = Buffer.from(text.replace(/\r?\n$/, ''), 'utf8');
  if (secret.length >= SECRET_BYTES_MIN && secret.length <= SECRET_BYTES_MAX) return secret;
  throw new ConfigError(
    `${source} holds a secret of ${secret.length} bytes; allowed: ${SECRET_BYTES_MIN} to ${SECRET_BYTES_MAX}`,
  );
}

/** The proof of `side` over the payloads of the handshake so far; all zero without a secret. */
export function makeProof(
  secret: Uint8Array | null,
  side: LinkSide,
  handshake: readonly Uint8Array[],
): Uint8Array {
  if (secret === null) return new Uint8Array(PROOF_BYTES);
  const hmac = createHmac('sha256', secret).update(`millrace link ${side}\n`);
  for (const part of handshake) {
    const length = Buffer.alloc(4);
    length.writeUInt32LE(part.length);
    hmac.update(length).update(part);
  }
  return hmac.digest();
}

/** True when `proof` is that of `side`; takes the same time wherever it differs. */
export function checkProof(
  secret: Uint8Array | null,
  side: LinkSide,
  handshake: readonly Uint8Array[],
  proof: Uint8Array,
): boolean {
  return timingSafeEqual(makeProof(secret, side, handshake), proof);
}
