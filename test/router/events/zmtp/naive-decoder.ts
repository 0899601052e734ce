/** The oracle of the ZMTP decoder: reads a whole byte stream at once, a step at a time, with no thought of speed. */

/** What a stream says, one entry each: `greeting 1 NULL`, `command …`, `message …` in hex, `fault …`. */
export function readNaively(stream: Buffer, frameBytesMax: number): string[] {
  const said: string[] = [];
  if (stream.length < 64) return said;
  said.push(`greeting ${stream[11]} ${stream.toString('latin1', 12, 32).replaceAll('\0', '')}`);
  let frames: string[] = [];
  let messageBytes = 0;
  for (let at = 64; at < stream.length; ) {
    const flags = stream[at]!;
    const headBytes = flags & 2 ? 9 : 2;
    if (stream.length - at < headBytes) break;
    const size = flags & 2 ? Number(stream.readBigUInt64BE(at + 1)) : stream[at + 1]!;
    messageBytes += headBytes + size;
    if (
      flags > 7 ||
      (flags & 5) === 5 ||
      size > (flags & 4 ? 4096 : frameBytesMax) ||
      (!(flags & 4) && frames.length === 8) ||
      messageBytes > frameBytesMax + 8192
    )
      return [...said, 'fault'];
    if (stream.length - at < headBytes + size) break;
    at += headBytes + size;
    const body = stream.toString('hex', at - size, at);
    if (flags & 4) said.push(`command ${body}`);
    else frames.push(body);
    if (!(flags & 5)) {
      said.push(`message ${frames.join(',')}`);
      frames = [];
    }
    if (frames.length === 0) messageBytes = 0;
  }
  return said;
}
