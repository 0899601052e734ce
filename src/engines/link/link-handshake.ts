/**
 * The handshake of a worker link (R5) as pure steps: HELLO → CHALLENGE → REGISTER, each side checking the other's version
 * and proof. A step returns the bytes to send, or the LinkFault to refuse with, whose message tells an operator what to
 * change. link-protocol.ts has the picture.
 */
import {
  type Challenge,
  decodeChallenge,
  decodeHello,
  decodeRegistration,
  encodeChallenge,
  encodeHello,
  encodeRegistration,
  type Registration,
  splitProof,
} from './link-messages.js';
import { LINK_VERSION, type LinkFault, type LinkFaultKind } from './link-protocol.js';
import { checkProof, makeProof } from './link-secret.js';

/** What a side brings to the handshake. */
export interface HandshakeSide {
  readonly secret: Uint8Array | null;
  /** LINK_CAPABILITY bits that it offers. */
  readonly capabilities: number;
  /** NONCE_BYTES that nobody can foretell, new for each connection. */
  readonly nonce: Uint8Array;
}

/** What a step gives: bytes to send, or why it ends here. */
export type HandshakeStep<T> =
  | { readonly ok: T; readonly fault: null }
  | { readonly ok: null; readonly fault: LinkFault };

const done = <T>(ok: T): HandshakeStep<T> => ({ ok, fault: null });
const refuse = <T>(kind: LinkFaultKind, message: string): HandshakeStep<T> => ({
  ok: null,
  fault: { kind, message },
});

const secretFault = (hasOurs: boolean, hasTheirs: boolean): string | null => {
  if (hasOurs === hasTheirs) return null;
  const [with_, without] = hasOurs ? ['this', 'the other'] : ['the other', 'this'];
  return `${with_} side of the link has a secret and ${without} side has none: give both the same`;
};

/** The worker side. Steps in order: `hello`, `register`. */
export class WorkerHandshake {
  readonly #side: HandshakeSide;
  #hello: Uint8Array = new Uint8Array(0);

  constructor(side: HandshakeSide) {
    this.#side = side;
  }

  /** HELLO as bytes. */
  hello(): Uint8Array {
    const { secret, capabilities, nonce } = this.#side;
    this.#hello = encodeHello({
      versionMin: LINK_VERSION.min,
      versionMax: LINK_VERSION.max,
      capabilities,
      hasSecret: secret !== null,
      nonce,
    });
    return this.#hello;
  }

  /** Checks CHALLENGE; gives the bytes of REGISTER and what was agreed. Throws RecordError. */
  register(
    payload: Uint8Array,
    registration: Registration,
  ): HandshakeStep<{ readonly bytes: Uint8Array; readonly capabilities: number }> {
    const { secret } = this.#side;
    const { said, proof } = splitProof(payload);
    const challenge = decodeChallenge(said);
    if (challenge.version < LINK_VERSION.min || challenge.version > LINK_VERSION.max)
      return refuse(
        'version',
        `the plane chose version ${challenge.version} of the link, which was not offered`,
      );
    const problem = secretFault(secret !== null, challenge.hasSecret);
    if (problem !== null) return refuse('auth', problem);
    if (!checkProof(secret, 'plane', [this.#hello, said], proof))
      return refuse('auth', 'the plane does not know the secret of this link');
    const body = encodeRegistration(registration);
    const own = makeProof(secret, 'worker', [this.#hello, said, body]);
    const capabilities = challenge.capabilities & this.#side.capabilities;
    return done({ bytes: Buffer.concat([body, own]), capabilities });
  }
}

/** The plane side. Steps in order: `challenge`, `admit`. */
export class PlaneHandshake {
  readonly #side: HandshakeSide;
  #hello: Uint8Array | null = null;
  #said: Uint8Array = new Uint8Array(0);

  constructor(side: HandshakeSide) {
    this.#side = side;
  }

  /** `challenge` has been done: REGISTER is due. */
  get isChallenged(): boolean {
    return this.#hello !== null;
  }

  /** Checks HELLO; gives the bytes of CHALLENGE and what was agreed. Throws RecordError. */
  challenge(
    payload: Uint8Array,
  ): HandshakeStep<{ readonly bytes: Uint8Array; readonly capabilities: number }> {
    const { secret, nonce } = this.#side;
    const hello = decodeHello(payload);
    const { versionMin, versionMax } = hello;
    const version = Math.min(versionMax, LINK_VERSION.max);
    if (version < LINK_VERSION.min || version < versionMin)
      return refuse(
        'version',
        `the worker side speaks versions ${versionMin} to ${versionMax} of the link, this plane ${LINK_VERSION.min} to ${LINK_VERSION.max}`,
      );
    const problem = secretFault(secret !== null, hello.hasSecret);
    if (problem !== null) return refuse('auth', problem);
    const capabilities = hello.capabilities & this.#side.capabilities;
    const challenge: Challenge = { version, capabilities, hasSecret: secret !== null, nonce };
    this.#hello = payload.slice();
    this.#said = encodeChallenge(challenge);
    const proof = makeProof(secret, 'plane', [this.#hello, this.#said]);
    return done({ bytes: Buffer.concat([this.#said, proof]), capabilities });
  }

  /** Checks REGISTER. Throws RecordError. */
  admit(payload: Uint8Array): HandshakeStep<Registration> {
    const { said, proof } = splitProof(payload);
    if (!checkProof(this.#side.secret, 'worker', [this.#hello!, this.#said, said], proof))
      return refuse('auth', 'the worker side does not know the secret of this plane');
    return done(decodeRegistration(said));
  }
}
