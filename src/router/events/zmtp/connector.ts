/**
 * ZmtpConnector (R4): a connection to one endpoint that is made anew whenever it ends, after a pause that grows from one
 * failure to the next and is drawn at random, so that the readers of an engine that comes again do not all come at once.
 * Owned by an event source or a replay, on the thread that reads events.
 */
import type { Timer } from '../../../runtime/clock.js';
import type { Random } from '../../../runtime/random.js';
import { ZmtpConnection, type ZmtpConnectionOptions } from './connection.js';
import type { NetAddress } from './endpoint.js';

/** What a connector needs; `onEnd` is told of each connection. */
export interface ZmtpConnectorOptions extends ZmtpConnectionOptions {
  readonly address: NetAddress;
  readonly random: Random;
}

const PAUSE_FIRST_MS = 100;
const PAUSE_MAX_MS = 2000;

/** See the head of the file. */
export class ZmtpConnector {
  readonly #options: ZmtpConnectorOptions;
  #connection: ZmtpConnection;
  #pause: Timer | null = null;
  #failures = 0;
  #openedMs = 0;
  #isClosed = false;

  /** Begins to connect. */
  constructor(options: ZmtpConnectorOptions) {
    this.#options = options;
    this.#connection = this.#open();
  }

  /** Nothing is told after this call; resolves when the socket is closed. */
  async close(): Promise<void> {
    this.#isClosed = true;
    this.#pause?.cancel();
    await this.#connection.close();
  }

  #open(): ZmtpConnection {
    const { address, onEnd, ...options } = this.#options;
    this.#openedMs = options.clock.nowMs();
    return new ZmtpConnection(address, {
      ...options,
      onEnd: (reason, connection) => {
        this.#wait();
        onEnd(reason, connection);
      },
    });
  }

  #wait(): void {
    if (this.#isClosed) return;
    const { clock, random } = this.#options;
    // One that has held is no failure; one that ends again and again must not come at full speed.
    if (clock.nowMs() - this.#openedMs > PAUSE_MAX_MS) this.#failures = 0;
    const pauseMs = Math.min(PAUSE_MAX_MS, PAUSE_FIRST_MS * 2 ** this.#failures);
    this.#failures += 1;
    this.#pause = clock.after(pauseMs * (0.5 + random() / 2), () => {
      this.#connection = this.#open();
    });
  }
}
