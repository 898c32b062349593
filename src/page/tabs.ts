/** The page in other tabs of this browser: each tells the others when a session has changed, and they look. */

export interface Tabs {
  /** @param sessionId null when the list has changed, or who this is */
  tell(sessionId: string | null): void
}

export function createTabs(onChange: (sessionId: string | null) => void): Tabs {
  const channel = new BroadcastChannel('verbatim')
  channel.addEventListener('message', ({ data }: MessageEvent<unknown>) => {
    onChange(typeof data === 'string' ? data : null)
  })
  return { tell: (sessionId) => channel.postMessage(sessionId) }
}
