/** Certificates for tests, made when they are needed: a CA, and what it signs for a host. X.509 v3 with P-256 keys. */
import { generateKeyPairSync, type KeyObject, randomBytes, sign } from 'node:crypto';
import { isIP } from 'node:net';

const DAY_MS = 86_400_000;
const TAG = { boolean: 1, integer: 2, bits: 3, octets: 4, oid: 6, text: 12, sequence: 0x30, set: 0x31 };
const TIME = 24;
/** Context-specific tags of a certificate and of a subject's other names. */
const VERSION = 0xa0;
const EXTENSIONS = 0xa3;
const DNS_NAME = 0x82;
const IP_ADDRESS = 0x87;
const OID = {
  ecdsaWithSha256: '2a8648ce3d040302',
  commonName: '550403',
  basicConstraints: '551d13',
  otherNames: '551d11',
};

function der(tag: number, ...parts: readonly Uint8Array[]): Buffer {
  const content = Buffer.concat(parts);
  const { length } = content;
  const long = length < 256 ? [0x81, length] : [0x82, length >> 8, length & 0xff];
  return Buffer.concat([Buffer.from([tag, ...(length < 128 ? [length] : long)]), content]);
}

const oid = (hex: string): Buffer => der(TAG.oid, Buffer.from(hex, 'hex'));
const sequence = (...parts: readonly Uint8Array[]): Buffer => der(TAG.sequence, ...parts);
const nameOf = (text: string): Buffer =>
  sequence(der(TAG.set, sequence(oid(OID.commonName), der(TAG.text, Buffer.from(text)))));
const timeOf = (ms: number): Buffer =>
  der(TIME, Buffer.from(`${new Date(ms).toISOString().replace(/[-:T]|\.\d+/g, '')}`));
const pem = (bytes: Uint8Array): string =>
  `-----BEGIN CERTIFICATE-----\n${Buffer.from(bytes)
    .toString('base64')
    .replace(/.{64}(?=.)/g, '$&\n')}\n-----END CERTIFICATE-----\n`;

function otherName(host: string): Buffer {
  if (isIP(host) === 4) return der(IP_ADDRESS, Uint8Array.from(host.split('.'), Number));
  return der(DNS_NAME, Buffer.from(host));
}

interface Signer {
  readonly name: string;
  readonly key: KeyObject;
}

function certificate(name: string, publicKey: KeyObject, signer: Signer, extension: Buffer): string {
  const algorithm = sequence(oid(OID.ecdsaWithSha256));
  const nowMs = Date.now();
  const said = sequence(
    der(VERSION, der(TAG.integer, Buffer.from([2]))),
    der(TAG.integer, Buffer.from([1]), randomBytes(8)),
    algorithm,
    nameOf(signer.name),
    sequence(timeOf(nowMs - DAY_MS), timeOf(nowMs + DAY_MS)),
    nameOf(name),
    publicKey.export({ type: 'spki', format: 'der' }),
    der(EXTENSIONS, sequence(extension)),
  );
  const signature = der(TAG.bits, Buffer.from([0]), sign('sha256', said, signer.key));
  return pem(sequence(said, algorithm, signature));
}

/** A certificate and its key, as PEM. */
export interface TestCertificate {
  readonly cert: string;
  readonly key: string;
}

/** An authority of its own. */
export class TestCa {
  /** Its certificate, as PEM. */
  readonly cert: string;
  readonly #signer: Signer;

  constructor(name: string) {
    const { publicKey, privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
    this.#signer = { name, key: privateKey };
    const isCa = sequence(der(TAG.boolean, Buffer.from([0xff])));
    const critical = der(TAG.boolean, Buffer.from([0xff]));
    const extension = sequence(oid(OID.basicConstraints), critical, der(TAG.octets, isCa));
    this.cert = certificate(name, publicKey, this.#signer, extension);
  }

  /** Signs a certificate for a DNS name or an IPv4 address. */
  issue(host: string): TestCertificate {
    const { publicKey, privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
    const extension = sequence(oid(OID.otherNames), der(TAG.octets, sequence(otherName(host))));
    return {
      cert: certificate(host, publicKey, this.#signer, extension),
      key: privateKey.export({ type: 'pkcs8', format: 'pem' }) as string,
    };
  }
}
