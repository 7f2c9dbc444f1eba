// An application that hears of registrations by webhooks: verifies each call, and prints what it is told once.
//
//     node examples/webhook.mjs 3000 whsec_…
//
// Keys are secrets that Registrar has, too (whsec_…), or public keys of it (whpk_…, as `registrar webhooks list` shows
// them). During a rotation give the old one and the new one. Nothing but Node is needed.
import { createHmac, createPublicKey, timingSafeEqual, verify as verifyEd25519 } from "node:crypto";
import { createServer } from "node:http";

const TOLERANCE = 5 * 60; // seconds that a call may be old: whoever has recorded one cannot send it again later

/** Was this signed with one of the keys, and just now? `body` is the Buffer as it came, before any parsing. */
export function verify(keys, { id, timestamp, signature }, body) {
  if (!/^\d+$/.test(timestamp ?? "") || Math.abs(Date.now() / 1000 - Number(timestamp)) > TOLERANCE) return false;
  const signed = Buffer.concat([Buffer.from(`${id}.${timestamp}.`), body]);
  return keys.some((key) => {
    const [kind, ...rest] = key.split("_");
    const raw = Buffer.from(rest.join("_"), "base64");
    return (signature ?? "").split(" ").some((one) => {
      const [version, encoded] = one.split(",");
      const given = Buffer.from(encoded ?? "", "base64");
      if (kind === "whsec" && version === "v1") {
        const expected = createHmac("sha256", raw).update(signed).digest();
        return given.length === expected.length && timingSafeEqual(given, expected);
      }
      if (kind === "whpk" && version === "v1a") {
        const jwk = { kty: "OKP", crv: "Ed25519", x: raw.toString("base64url") };
        return verifyEd25519(null, signed, createPublicKey({ key: jwk, format: "jwk" }), given);
      }
      return false;
    });
  });
}

const [port, ...keys] = process.argv.slice(2);
const seen = new Set(); // in earnest a table, written in the transaction of what the event leads to

const server = createServer((request, response) => {
  const chunks = [];
  request.on("data", (chunk) => chunks.push(chunk));
  request.on("end", () => {
    const body = Buffer.concat(chunks);
    const said = (name) => request.headers[`webhook-${name}`];
    const head = { id: said("id"), timestamp: said("timestamp"), signature: said("signature") };
    if (!verify(keys, head, body)) return response.writeHead(401).end();
    if (!seen.has(head.id)) {
      const event = JSON.parse(body);
      console.log(event.type, event.subject ?? "");
      seen.add(head.id);
    }
    response.writeHead(204).end(); // once it is done; anything else is sent again
  });
});
server.listen(Number(port), "127.0.0.1", () => console.log("listening", server.address().port));
