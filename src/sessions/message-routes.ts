/** Routes of single messages: what their owner adds to them. What makes new ones is in runs/branches.ts. */
import { problemResponses } from '../http/openapi.ts'
import type { Server } from '../http/server.ts'
import { cleanJson, limitJson } from '../http/text.ts'
import type { FeedbackStore } from './feedback.ts'
import type { MessageStore } from './messages.ts'
import { FeedbackBody, IdParams, Message, MessageFeedback, RetrievalBody, retrievedDocsBytesMax } from './model.ts'

export interface MessageRoutesOptions {
  readonly messages: MessageStore
  readonly feedback: FeedbackStore
}

export function registerMessages(app: Server, { messages, feedback }: MessageRoutesOptions): void {
  app.put(
    '/messages/:id/feedback',
    {
      schema: {
        tags: ['sessions'],
        params: IdParams,
        body: FeedbackBody,
        response: { 200: MessageFeedback, ...problemResponses },
      },
    },
    async (request) => feedback.putFeedback(request.owner, request.params.id, cleanJson(request.body)),
  )

  app.put(
    '/messages/:id/retrieval',
    {
      schema: {
        tags: ['sessions'],
        params: IdParams,
        body: RetrievalBody,
        response: { 200: Message, ...problemResponses },
      },
    },
    async (request) => {
      const body = cleanJson(request.body)
      limitJson('retrieved_docs', body.retrieved_docs, retrievedDocsBytesMax)
      await feedback.putRetrieval(request.owner, request.params.id, body)
      return messages.getMessage(request.owner, request.params.id)
    },
  )
}
