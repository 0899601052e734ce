/**
 * The addon and one agent's handle in it, as the classes of transfer/ share them: turns statuses below zero into
 * TransferError and refuses calls after the agent was closed. Owned by the TransferAgent; on the thread that opened it.
 */
import type { TransferAddon } from '../runtime/transfer-addon.js';
import { codeOf, TransferError } from './errors.js';

/** An addon that has the transfer functions. */
export type TransferNative = TransferAddon & { detach(handle: number): void };

/** One open agent of the addon. */
export class NativeAgent {
  readonly #addon: TransferNative;
  /** The agent's handle in the addon. */
  readonly handle: number;
  #isOpen = true;

  constructor(addon: TransferNative, handle: number) {
    this.#addon = addon;
    this.handle = handle;
  }

  /** The addon; throws CLOSED when the agent is closed. */
  get addon(): TransferNative {
    if (!this.#isOpen) throw new TransferError('CLOSED', 'the agent is closed');
    return this.#addon;
  }

  get isOpen(): boolean {
    return this.#isOpen;
  }

  /** Returns `result`, or throws with the engine's words where it is a status below zero. */
  pass(doing: string, result: number): number {
    if (result >= 0) return result;
    throw new TransferError(codeOf(result), `${doing}: ${this.#addon.transferError()}`);
  }

  /** Ends the agent's transfers and joins its thread. */
  close(): void {
    this.#isOpen = false;
    this.#addon.detach(this.handle);
  }
}
