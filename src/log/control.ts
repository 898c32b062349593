/**
 * The port to the control stream: short commands from one process to another. They make fast what the database makes
 * certain; one that is lost costs half a second, because every process looks at the database that often (runs/reaper.ts).
 */

export type Command =
  /** Somebody has asked for the stop of a run that the receiver makes. */
  | { readonly kind: 'stop'; readonly runId: string }
  /** There are runs to take over: look now. */
  | { readonly kind: 'look' }

export interface Control {
  /** Best effort: never throws, never waits. */
  send(instanceId: string, command: Command): void
  /** Commands for this process. */
  listen(listener: (command: Command) => void): void
}

/** For a process whose log nobody shares: there is nobody to talk to, or no way. */
export function createSilentControl(): Control {
  return { send: () => undefined, listen: () => undefined }
}
