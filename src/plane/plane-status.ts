/** What a plane says of itself: read by the banner of `millrace serve`, by doctor and by an embedding host. Values. */

/** What runs, for the banner and `/health`. */
export interface PlaneStatus {
  readonly server: 'uws' | 'node';
  /** Why the server is not the first choice, or null. */
  readonly serverNotice: string | null;
  readonly addon: { readonly loaded: boolean; readonly reason: string };
  readonly socketThreads: number;
  readonly poolThreads: number;
  /** Workers, and how many of them publish KV events; the cache of the others is guessed from what is routed there. */
  readonly kvEvents: { readonly publishing: number; readonly workers: number };
  /** Bytes that the prefix index may take; null: no policy and no worker has use for one. */
  readonly indexBytes: number | null;
  /** Where workers link in, as it was opened; null: nowhere. */
  readonly linkAddress: string | null;
}
