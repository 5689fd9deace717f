// Shows HTML and says which cell or word was clicked, or chosen with Enter: ["cell", layer, position]
// or ["word", mark].
export default {
  render({ model, el }) {
    const draw = () => {
      const box = el.firstElementChild;
      const at = [box?.scrollLeft ?? 0, box?.scrollTop ?? 0];
      const held = el.contains(document.activeElement) ? document.activeElement.dataset : null;
      el.innerHTML = model.get('html');
      const grid = el.firstElementChild, open = el.querySelector('[data-chosen]');
      grid?.scrollTo(...at);
      const beyond = open && open.getBoundingClientRect().right - grid.getBoundingClientRect().right;
      if (!at[0] && beyond > 0) grid.scrollLeft = beyond; // the open cell, at first the last one
      if (held?.layer) el.querySelector(
        `td[data-layer="${held.layer}"][data-position="${held.position}"]`)?.focus();
    };
    const choose = (event) => {
      if (event.type === 'keydown' && event.key !== 'Enter') return;
      const found = event.target.closest('[data-layer],[data-mark]');
      if (!found) return;
      event.preventDefault();
      const { layer, position, mark } = found.dataset;
      model.set('clicked', mark ? ['word', mark, Date.now()] : ['cell', +layer, +position, Date.now()]);
      model.save_changes();
    };
    model.on('change:html', draw);
    for (const kind of ['click', 'keydown']) el.addEventListener(kind, choose);
    draw();
    requestAnimationFrame(draw); // once it has its width
    return () => model.off('change:html', draw);
  },
};
