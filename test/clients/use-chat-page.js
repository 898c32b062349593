/**
 * The smallest page around `useChat`, as docs/ai-sdk.md shows it: the default transport, `resume: true`, the stored chat
 * before the first render. Bundled once for each version of the SDK; `chat-react` and `chat-core` are that version's packages.
 * With `?resuming` in its URL it goes on over broken connections, as docs/client.md shows it.
 */
import { DefaultChatTransport } from 'chat-core'
import { useChat } from 'chat-react'
import { createElement as h } from 'react'
import { createRoot } from 'react-dom/client'
import { createResumingFetch } from '../../src/client/index.ts'

const resuming = () => new DefaultChatTransport({ fetch: createResumingFetch({ limits: { backOffMaxMs: 200 } }) })
const own = location.search === '?resuming' ? { transport: resuming() } : {}

function Chat({ id, messages: stored }) {
  const { messages, status, error, sendMessage, regenerate, stop } = useChat({
    id,
    messages: stored,
    resume: true,
    ...own,
  })

  function send(event) {
    event.preventDefault()
    const { elements } = event.target
    sendMessage({ text: elements.words.value })
    elements.words.value = ''
  }

  const stopForAll = () => fetch(`/api/chat/${id}/stop`, { method: 'POST' })
  const button = (name, onClick) => h('button', { type: onClick ? 'button' : 'submit', onClick }, name)
  return h(
    'main',
    { 'data-status': status },
    messages.map(({ id, role, parts }) =>
      h(
        'article',
        { key: id, 'data-id': id, 'data-role': role },
        parts.map(({ type, text }) => (type === 'text' ? text : '')).join(''),
      ),
    ),
    error && h('p', { role: 'alert' }, error.message),
    h('form', { onSubmit: send }, h('input', { name: 'words' }), button('Send')),
    button('Stop', stopForAll),
    button('Leave', () => stop()),
    button('Regenerate', () => regenerate()),
  )
}

const id = location.hash.slice(1)
const chat = await (await fetch(`/api/chat/${id}`)).json()
createRoot(document.body.appendChild(document.createElement('div'))).render(h(Chat, chat))
