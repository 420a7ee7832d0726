// Answers that follow from the request alone, so that two of them can be compared (Node).
const crypto = require('node:crypto')
const http = require('node:http')

// What a hop says of itself.
const HOP = ['x-forwarded-', 'x-request-id', 'connection', 'transfer-encoding', 'content-length']

function answer (request, response, body) {
  const url = new URL(request.url, 'http://mirror')
  const query = Object.fromEntries(url.searchParams)
  const seen = Object.entries(request.headers)
    .filter(([name]) => !HOP.some((hop) => name.startsWith(hop)))
  const told = [
    request.method, request.url, seen.sort(), body.length,
    crypto.createHash('sha256').update(body).digest('hex')
  ]
  const filler = Buffer.from(Array.from({ length: 256 }, (_, byte) => byte))
  const parts = [Buffer.from(JSON.stringify(told) + '\n')]
  for (let size = Number(query.size || 0); size >= 256; size -= 256) parts.push(filler)
  let text = Buffer.concat(parts)
  response.setHeader('X-Twice', ['1', '2'])
  const cookies = Array.from({ length: Number(query.cookies || 0) }, (_, n) => `c${n}=v; Path=/`)
  if (cookies.length) response.setHeader('Set-Cookie', cookies)
  if (query.to) response.setHeader('Location', query.to)
  const [status, ...reason] = (query.status || '200 OK').split(' ')
  response.statusCode = Number(status)
  response.statusMessage = reason.join(' ')
  if (request.headers.range && response.statusCode === 200) {
    const [first, last] = request.headers.range.slice('bytes='.length).split('-').map(Number)
    const end = Math.min(last + 1, text.length)
    response.setHeader('Content-Range', `bytes ${first}-${end - 1}/${text.length}`)
    response.statusCode = 206
    response.statusMessage = 'Partial Content'
    text = text.subarray(first, end)
  }
  if (status === '204' || status === '304') return response.end()
  if (!('stream' in query)) response.setHeader('Content-Length', text.length)
  if (request.method === 'HEAD') return response.end()
  for (let at = 0; at < text.length; at += 50000) response.write(text.subarray(at, at + 50000))
  response.end()
}

http.createServer((request, response) => {
  const chunks = []
  request.on('data', (chunk) => chunks.push(chunk))
  request.on('end', () => answer(request, response, Buffer.concat(chunks)))
}).listen(process.argv[2], () => console.log('listening'))
