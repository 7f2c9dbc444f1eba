// With the ending `.js` in imports, Node.js runs what is compiled as it is; bundlers take it, too.
export default {
  input: "./docs/openapi.json",
  output: { path: "clients/typescript", importFileExtension: ".js" },
};
