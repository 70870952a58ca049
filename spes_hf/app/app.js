// A frame reports the height of its page.
addEventListener("message", ({ source, data }) => {
  if (!data || !Number.isFinite(data.spesHeight)) return;
  for (const frame of document.querySelectorAll("#result iframe"))
    if (frame.contentWindow === source) frame.style.height = `${Math.min(data.spesHeight, 20000) + 2}px`;
});
