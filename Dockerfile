# The gateway as an image: Node 24, the production packages, the TypeScript sources. Nothing is compiled: Node runs
# them as they are.

FROM node:24-slim AS packages
WORKDIR /app
COPY package.json package-lock.json .npmrc ./
# The optional packages are a second Node for machines without Node 24; this image is Node 24.
RUN npm ci --omit=dev --omit=optional && npm cache clean --force

FROM node:24-slim
ENV NODE_ENV=production \
    HOST=:: \
    PORT=3000 \
    DATA_DIR=/data
WORKDIR /app
# /data holds the embedded database where DATABASE_URL is not set: mount a volume there. No VOLUME instruction, because
# Railway refuses a Dockerfile that has one. The user node comes with the image.
RUN mkdir /data && chown node:node /data
COPY --from=packages /app/node_modules ./node_modules
COPY package.json LICENSE ./
COPY drizzle ./drizzle
COPY src ./src
# Keys of the gateway are made beside it: node scripts/keys.ts.
COPY scripts/keys.ts ./scripts/keys.ts
USER node
EXPOSE 3000
STOPSIGNAL SIGTERM
# Live, not ready: a database that is away is no reason to restart the gateway.
HEALTHCHECK --interval=15s --timeout=5s --start-period=20s --retries=3 \
  CMD ["node", "-e", "fetch('http://127.0.0.1:' + (process.env.PORT || 3000) + '/health/live', { signal: AbortSignal.timeout(4000) }).then((answer) => process.exit(answer.ok ? 0 : 1), () => process.exit(1))"]
# node itself, not npm: npm does not hand SIGTERM on, and running replies would be cut instead of drained.
CMD ["node", "src/main.ts"]
