"use strict";
(() => {
  const query = JSON.parse(document.getElementById("query").textContent);
  const { items, classes } = query;
  const OTHER = -1; // the label of an image of no target class; null: no label yet
  const UNDO_DEPTH = 1000;
  const element = (id) => document.getElementById(id);
  const images = element("images");
  const cards = [];

  let labels = items.map(() => null);
  let history = []; // [image, label before], the last one last
  let current = 0;
  let onlyUnlabeled = false;
  let storageWorks = true;
  let unsaved = false; // labels that no csv holds yet

  // A label's name, and its cell in the csv (made by the program that reads it back).
  const nameOf = (label) => (label === OTHER ? query.other.name : classes[label].name);
  const cellOf = (label) => (label === null ? "" : label === OTHER ? query.other.cell : classes[label].cell);
  const validLabel = (label) => label === null || (Number.isInteger(label) && label >= OTHER && label < classes.length);
  const validImage = (image) => Number.isInteger(image) && image >= 0 && image < items.length;

  // State that outlives the tab.

  function keep() {
    try {
      localStorage.setItem(query.key, JSON.stringify({ labels, history, current, unsaved }));
      storageWorks = true;
    } catch (error) {
      storageWorks = false;
    }
    element("storage").hidden = storageWorks;
  }

  function restore(text) {
    let kept = null;
    try {
      kept = JSON.parse(text);
    } catch (error) {
      return;
    }
    if (!kept || !Array.isArray(kept.labels) || kept.labels.length !== items.length) return;
    labels = kept.labels.map((label) => (validLabel(label) ? label : null));
    const valid = (step) => Array.isArray(step) && validImage(step[0]) && validLabel(step[1]);
    history = Array.isArray(kept.history) ? kept.history.filter(valid) : [];
    if (validImage(kept.current)) current = kept.current;
    unsaved = Boolean(kept.unsaved);
  }

  // Labeling.

  function setLabel(image, label) {
    labels[image] = label;
    unsaved = true;
    const complete = !labels.includes(null);
    element("saved").textContent = complete ? "Every image has a label. Save the csv (S)." : "";
    element("saved").hidden = !complete;
    keep();
    showCard(image);
    showCount();
  }

  function labelCurrent(label) {
    if (!items.length || current === null) return;
    const image = current;
    if (labels[image] !== label) {
      history.push([image, labels[image]]);
      if (history.length > UNDO_DEPTH) history.shift();
      setLabel(image, label);
    }
    if (label === null) choose(image);
    else step(1, image);
    announce(`${items[image].path}: ${label === null ? "label removed" : nameOf(label)}. ${element("count").textContent}`);
  }

  function accept() {
    if (current === null) return;
    const suggestion = items[current].suggestion;
    if (suggestion === null) announce("There is no suggestion for this image; press the key of its class.");
    else labelCurrent(suggestion);
  }

  function undo() {
    const last = history.pop();
    if (!last) return;
    setLabel(last[0], last[1]);
    choose(last[0]);
    announce(`Undone: ${items[last[0]].path}. ${element("count").textContent}`);
  }

  // Moving.

  const visible = (image) => !onlyUnlabeled || labels[image] === null || image === current;

  function step(by, from) {
    for (let image = from + by; image >= 0 && image < items.length; image += by) {
      if (!onlyUnlabeled || labels[image] === null) return choose(image);
    }
    if (!onlyUnlabeled || labels[from] === null) return choose(from);
    // After the last one that is left, go to the first.
    const left = labels.indexOf(null);
    return choose(left === -1 ? null : left);
  }

  function stepRow(down) {
    if (current === null) return;
    const from = cards[current].getBoundingClientRect();
    let best = null;
    let bestCost = Infinity;
    cards.forEach((card, image) => {
      if (card.hidden) return;
      const to = card.getBoundingClientRect();
      const distance = down ? to.top - from.top : from.top - to.top;
      if (distance < 1) return;
      const cost = distance * 10000 + Math.abs(to.left - from.left);
      if (cost < bestCost) [best, bestCost] = [image, cost];
    });
    if (best !== null) choose(best);
  }

  function choose(image) {
    const before = current;
    current = image;
    if (onlyUnlabeled) showFilter();
    for (const other of new Set([before, image])) if (other !== null) showCard(other);
    showCurrent();
    if (image !== null) {
      cards[image].focus({ preventScroll: true });
      cards[image].scrollIntoView({ block: "nearest" });
    }
    keep();
  }

  // Drawing.

  function create(tag, className, text) {
    const created = document.createElement(tag);
    if (className) created.className = className;
    if (text !== undefined) created.textContent = text;
    return created;
  }

  function showImage(target, item) {
    target.src = item.image;
    target.classList.toggle("pixels", item.small);
  }

  const scoresOf = (item) =>
    query.scores.map((name, index) => item.scores[index] && `${name} ${item.scores[index]}`).filter(Boolean);

  function build() {
    query.groups.forEach((group, number) => {
      const box = create("div", "group");
      box.setAttribute("role", "group");
      const title = create("h2", "", group.title);
      title.id = `group-${number}`;
      title.dir = "auto";
      title.append(create("span", "number", ` (${group.count})`));
      box.setAttribute("aria-labelledby", title.id);
      const grid = create("div", "grid");
      for (let count = 0; count < group.count; count++) grid.append(buildCard(cards.length));
      box.append(title, grid);
      images.append(box);
    });
    classes.forEach((entry, number) => element("choices").append(choice(entry.name, entry.key, number)));
    element("choices").append(choice(`${query.other.name}: none of these`, query.other.key, OTHER));
  }

  function buildCard(image) {
    const item = items[image];
    const card = create("div", "card");
    card.setAttribute("role", "option");
    card.id = `image-${image}`;
    const thumbnail = create("img");
    thumbnail.alt = "";
    thumbnail.decoding = "async";
    thumbnail.loading = "lazy";
    showImage(thumbnail, item);
    card.append(thumbnail, create("div", "mark"), create("div", "small", scoresOf(item)[0] || ""));
    card.addEventListener("click", () => choose(image));
    cards[image] = card;
    return card;
  }

  function choice(name, key, label) {
    const button = create("button");
    button.type = "button";
    button.dataset.label = String(label);
    if (key) {
      button.append(create("kbd", "", key), " ");
      button.setAttribute("aria-keyshortcuts", key);
    }
    button.append(create("bdi", "", name));
    button.title = name;
    button.addEventListener("click", () => labelCurrent(label));
    return button;
  }

  function showCard(image) {
    const card = cards[image];
    const label = labels[image];
    const item = items[image];
    card.classList.toggle("done", label !== null && label !== OTHER);
    card.classList.toggle("other", label === OTHER);
    card.setAttribute("aria-selected", String(image === current));
    card.tabIndex = image === current ? 0 : -1;
    card.querySelector(".mark").textContent = label === null ? "" : `✓ ${nameOf(label)}`;
    const suggested = item.suggestion === null ? "" : `, suggested ${nameOf(item.suggestion)}`;
    card.setAttribute("aria-label", `${item.path}${suggested}, ${label === null ? "no label" : `label ${nameOf(label)}`}`);
  }

  function showCurrent() {
    const chosen = current !== null;
    element("preview").hidden = !chosen;
    for (const id of ["path", "scores", "label"]) element(id).textContent = "";
    for (const button of element("choices").children) {
      button.disabled = !chosen;
      button.setAttribute("aria-pressed", String(chosen && labels[current] === Number(button.dataset.label)));
    }
    if (!chosen) return;
    const item = items[current];
    showImage(element("preview"), item);
    element("preview").alt = item.path;
    element("path").textContent = item.path;
    element("scores").textContent = scoresOf(item).join(", ");
    const suggested = item.suggestion === null ? "no suggestion" : `suggested: ${nameOf(item.suggestion)}`;
    element("label").textContent = labels[current] === null ? suggested : `${nameOf(labels[current])} (${suggested})`;
  }

  function showCount() {
    const done = labels.filter((label) => label !== null).length;
    element("count").textContent = `${done} of ${items.length} labeled`;
    element("bar").max = Math.max(items.length, 1);
    element("bar").value = done;
    element("undo").disabled = !history.length;
  }

  function showFilter() {
    element("filter").setAttribute("aria-pressed", String(onlyUnlabeled));
    cards.forEach((card, image) => {
      card.hidden = !visible(image);
    });
    for (const box of images.children) box.hidden = !box.querySelector(".card:not([hidden])");
    element("empty").hidden = cards.some((card) => !card.hidden);
  }

  function filter() {
    onlyUnlabeled = !onlyUnlabeled;
    let target = current;
    if (onlyUnlabeled && (target === null || labels[target] !== null)) {
      target = labels.indexOf(null, target === null ? 0 : target);
      if (target === -1) target = labels.indexOf(null);
      if (target === -1) target = null;
    }
    if (!onlyUnlabeled && target === null) target = 0;
    choose(target);
    showFilter();
  }

  function show() {
    cards.forEach((card, image) => showCard(image));
    showCount();
    showFilter();
    showCurrent();
  }

  function announce(text) {
    element("announcement").textContent = text;
  }

  // Saving.

  function csv() {
    const lines = items.map((item, image) => item.row + cellOf(labels[image]));
    return "\ufeff" + [query.heading, ...lines].map((line) => `${line}\r\n`).join("");
  }

  function save() {
    const address = URL.createObjectURL(new Blob([csv()], { type: "text/csv;charset=utf-8" }));
    const link = create("a");
    link.href = address;
    link.download = query.file;
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(address), 60000);
    unsaved = false;
    keep();
    const missing = labels.filter((label) => label === null).length;
    const saved = element("saved");
    saved.textContent =
      `Saved as ${query.file}. Next: run the command again with --labels and the path of that file` +
      (missing ? `; ${missing} of ${items.length} images have no label, so add --partial or label them first.` : ".");
    saved.hidden = false;
  }

  // Keys.

  const labelOfKey = new Map([[query.other.key, OTHER]]);
  classes.forEach((entry, number) => entry.key && labelOfKey.set(entry.key, number));
  const actions = {
    ArrowLeft: () => current !== null && step(-1, current),
    ArrowRight: () => current !== null && step(1, current),
    ArrowUp: () => stepRow(false),
    ArrowDown: () => stepRow(true),
    Home: () => step(1, -1),
    End: () => step(-1, items.length),
    Enter: accept,
    Delete: () => labelCurrent(null),
    Backspace: () => labelCurrent(null),
    u: undo,
    f: filter,
    s: save,
  };
  const repeats = new Set(["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"]);

  document.addEventListener("keydown", (event) => {
    const undoes = (event.ctrlKey || event.metaKey) && !event.shiftKey && event.key.toLowerCase() === "z";
    if (!undoes && (event.ctrlKey || event.metaKey || event.altKey)) return;
    const key = undoes ? "u" : event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (key === "Enter" && event.target.closest && event.target.closest("button")) return; // presses that button
    const act = labelOfKey.has(key) ? () => labelCurrent(labelOfKey.get(key)) : actions[key];
    if (!act) return;
    event.preventDefault();
    if (event.repeat && !repeats.has(key)) return; // a key held down is not a label for the next images
    act();
  });
  element("filter").addEventListener("click", filter);
  element("undo").addEventListener("click", undo);
  element("save").addEventListener("click", save);
  window.addEventListener("storage", (event) => {
    // Another tab shows this page, too, and has newer labels.
    if (event.key !== query.key || event.newValue === null) return;
    const before = current;
    restore(event.newValue);
    current = before;
    show();
  });
  window.addEventListener("beforeunload", (event) => {
    if (!storageWorks && unsaved) event.preventDefault();
  });

  build();
  try {
    const kept = localStorage.getItem(query.key);
    if (kept !== null) restore(kept);
  } catch (error) {
    storageWorks = false;
  }
  if (!items.length) current = null;
  show();
  choose(current);
})();
