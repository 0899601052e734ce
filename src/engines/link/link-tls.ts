/**
 * TLS of a worker link (R5): reads certificate, key and CA files, checks that they can be used before anything listens or
 * connects, and makes the sockets of both sides. The worker side always verifies the plane's certificate; a plane with a
 * CA asks each worker for one. Nothing older than TLS 1.3: both ends are Millrace. Files are read on the core's thread.
 */
import { X509Certificate } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { connect, isIP, type Socket } from 'node:net';
import {
  createSecureContext,
  type SecureContextOptions,
  type TlsOptions,
  connect as tlsConnect,
} from 'node:tls';
import { ConfigError } from '../../errors.js';
import type { LinkAddress } from './link-secret.js';

/** What one side brings, as PEM; certificate and key come together. Can be sent between threads. */
export interface LinkTls {
  readonly cert: string | null;
  readonly key: string | null;
  /** Who signs the other side's certificates. null: at a worker those that Node.js trusts, at a plane nobody is asked. */
  readonly ca: string | null;
}

/** A file and the setting that names it. */
export interface TlsFile {
  readonly name: string | null;
  readonly source: string;
}

const MIN_VERSION = 'TLSv1.3';

/**
 * Reads what the files hold; null where none is named. Throws ConfigError that names the setting of a file which is missing,
 * is no PEM, or does not fit its pair.
 */
export function readLinkTls(cert: TlsFile, key: TlsFile, ca: TlsFile): LinkTls | null {
  const tls: LinkTls = { cert: readCertificate(cert), key: readText(key), ca: readCertificate(ca) };
  if ((tls.cert === null) !== (tls.key === null))
    throw new ConfigError(`${cert.source} and ${key.source} belong together: one of them is missing`);
  if (tls.cert === null && tls.ca === null) return null;
  try {
    createSecureContext(contextOf(tls));
  } catch (cause) {
    throw new ConfigError(
      `${key.source} ${key.name} cannot be used with ${cert.source} ${cert.name}: ${(cause as Error).message}`,
      { cause },
    );
  }
  return tls;
}

function readText({ name, source }: TlsFile): string | null {
  if (name === null) return null;
  try {
    return readFileSync(name, 'utf8');
  } catch (cause) {
    throw new ConfigError(`${source} ${name} cannot be read: ${(cause as NodeJS.ErrnoException).code}`, {
      cause,
    });
  }
}

function readCertificate(file: TlsFile): string | null {
  const text = readText(file);
  if (text === null) return null;
  try {
    new X509Certificate(text);
  } catch (cause) {
    throw new ConfigError(`${file.source} ${file.name} holds no certificate as PEM`, { cause });
  }
  return text;
}

/** What `node:tls` takes of it. */
export function contextOf({ cert, key, ca }: LinkTls): SecureContextOptions {
  return {
    ...(cert === null ? {} : { cert }),
    ...(key === null ? {} : { key }),
    ...(ca === null ? {} : { ca }),
    minVersion: MIN_VERSION,
  };
}

/** Options of a plane's server: with a CA, who brings no certificate of it is not let in. */
export function serverOptions(tls: LinkTls, handshakeTimeout: number): TlsOptions {
  const asksWorkers = tls.ca !== null;
  return { ...contextOf(tls), requestCert: asksWorkers, rejectUnauthorized: asksWorkers, handshakeTimeout };
}

/** Connects a worker to a plane. `tls`: see LinkTls; it counts only where the address says so. */
export function connectLink(address: LinkAddress, tls: LinkTls | null): Socket {
  const { path, host, port, isTls } = address;
  if (path !== null) return connect(path);
  if (!isTls) return connect(port, host);
  // Said aloud: an environment variable could switch it off.
  const named = isIP(host) === 0 ? { servername: host } : {};
  return tlsConnect({
    host,
    port,
    ...named,
    ...(tls === null ? { minVersion: MIN_VERSION } : contextOf(tls)),
    rejectUnauthorized: true,
  });
}
