"use strict";
// The recording in a notebook, with the switch of the page; its frame is as high as what it holds.
(async () => {
  const { data } = spes, map = await spes.evidence(data.sentence);
  await spes.listening(() => ({ map, share: data.share, name: null }))();
  const fit = () => { if (frameElement) frameElement.style.height = `${Math.ceil(document.body.getBoundingClientRect().height)}px`; };
  new ResizeObserver(fit).observe(document.body);
  fit();
  document.body.dataset.ready = "yes";
})();
