export interface ResumingFetchOptions {
  readonly fetch?: typeof globalThis.fetch
}
export function createResumingFetch(options: ResumingFetchOptions = {}): typeof globalThis.fetch {
  return options.fetch ?? fetch
}
