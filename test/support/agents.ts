/** Agents of tests. */
import type { Agent } from '../../src/upstream/agent.ts'

/** One that says what the model says. */
export const passOn = (id: string): Agent => ({
  id,
  reply: ({ messages }, { ask }) => ask({ messages }),
})
