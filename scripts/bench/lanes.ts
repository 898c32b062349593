/**
 * Replies one after the other, in so many lanes at once: as soon as one has ended, the next is asked for. Unlike in paced
 * replies, all is counted here: accepting, storing and ending them too.
 */
import { checkReplies, type Outcome, openReply, untilEnded } from './replies.ts'
import type { Contender, Stage } from './stage.ts'
import type { Viewer } from './viewers.ts'
import { type Watched, watch } from './watch.ts'

export interface LanesLoad {
  readonly lanes: number
  readonly replies: number
  readonly tokens: number
  /** Between two tokens; 0: as fast as the sockets take them. */
  readonly intervalMs: number
  /** From the question to the first token. */
  readonly firstMs: number
  /** Longest wait for one reply. */
  readonly replyMsMax: number
}

export interface Lanes extends Outcome {
  readonly watched: Watched
}

export async function runLanes(stage: Stage, contender: Contender, load: LanesLoad): Promise<Lanes> {
  const { lanes, replies, tokens, intervalMs, firstMs, replyMsMax } = load
  stage.provider.setPace({ intervalMs, firstMs })
  const viewers: Viewer[] = []
  const stop = watch(stage, [contender])
  const runLane = async () => {
    while (viewers.length < replies) {
      const viewer = openReply(stage, contender, tokens)
      viewers.push(viewer)
      await untilEnded([viewer], replyMsMax)
    }
  }
  await Promise.all(Array.from({ length: lanes }, runLane))
  const watched = stop()
  return { watched, ...(await checkReplies(stage, contender, viewers)) }
}
