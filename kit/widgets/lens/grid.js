// Shows HTML and says which cell or word was clicked, or chosen with Enter: ["cell", layer, position]
// or ["word", mark].
export default {
  render({ model, el }) {
    const draw = () => {
      const box = el.firstElementChild;
      const at = [box?.scrollLeft ?? 0, box?.scrollTop ?? 0];
      const held = el.contains(document.activeElement) ? document.activeElement.dataset : null;
      el.innerHTML = model.get('html');
      el.firstElementChild?.scrollTo(...at);
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
    return () => model.off('change:html', draw);
  },
};
