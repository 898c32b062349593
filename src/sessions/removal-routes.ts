/** Deleting, restoring and erasing over HTTP. */
import { Type } from 'typebox'
import { problemResponses } from '../http/openapi.ts'
import type { Server } from '../http/server.ts'
import { IdParams, Session } from './model.ts'
import type { Removal } from './removal.ts'

const tags = ['sessions']

const DeleteSessionQuery = Type.Object(
  { purge: Type.Optional(Type.Boolean({ default: false, description: 'erase for good, also what is deleted' })) },
  { additionalProperties: false },
)

export function registerRemoval(app: Server, removal: Removal): void {
  app.delete(
    '/sessions/:id',
    {
      schema: {
        tags,
        params: IdParams,
        querystring: DeleteSessionQuery,
        response: { 204: Type.Null({ description: 'deleted, or erased' }), ...problemResponses },
      },
    },
    async (request, reply) => {
      const { owner, params, query } = request
      await (query.purge === true ? removal.purgeSession(owner, params.id) : removal.deleteSession(owner, params.id))
      return reply.code(204).send(null)
    },
  )

  app.post(
    '/sessions/:id/restore',
    { schema: { tags, params: IdParams, response: { 200: Session, ...problemResponses } } },
    async (request) => removal.restoreSession(request.owner, request.params.id),
  )

  app.delete(
    '/me',
    { schema: { tags, response: { 204: Type.Null({ description: 'nothing is left' }), ...problemResponses } } },
    async (request, reply) => {
      await removal.eraseOwner(request.owner)
      // The token is as good as a new one, and who comes with it has nothing; a browser need not keep it.
      if (request.owner.kind === 'visitor') reply.clearVisitor()
      return reply.code(204).send(null)
    },
  )
}
