// Where the live gateway is, read from the environment. Knows nothing of how it was started.

function needed(name) {
  const value = process.env[name];
  if (!value) throw new Error(`set ${name} to point at a running gateway`);
  return value;
}

export const baseURL = needed("BURNISH_TEST_BASE_URL").replace(/\/$/, "");
export const model = needed("BURNISH_TEST_MODEL");
export const adapter = needed("BURNISH_TEST_ADAPTER");
export const apiKey = process.env.BURNISH_TEST_KEY || "none-needed";
export const needsKey = Boolean(process.env.BURNISH_TEST_KEY);
