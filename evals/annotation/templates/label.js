"use strict";
(() => {
  const query = JSON.parse(document.getElementById("query").textContent);
  const { items, classes } = query;
  const NONE = -1; // the label of an image of no target class; null: no label yet
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

  // What a label is called, and how it stands in the csv (made by the program that reads it back).
  const nameOf = (label) => (label === NONE ? query.other.name : classes[label].name);
  const cellOf = (label) => (label === null ? "" : label === NONE ? query.other.cell : classes[label].cell);
  const validLabel = (label) => label === null || (Number.isInteger(label) && label >= NONE && label < classes.length);

  // State that outlives the tab.

  function keep() {
    try {
      localStorage.setItem(query.key, JSON.stringify({ labels, history, current, unsaved }));
      storageWorks = true;
    } catch (error) {
      storageWorks = false;
    }
    showStorage();
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
    const fits = (step) =>
      Array.isArray(step) && Number.isInteger(step[0]) && step[0] >= 0 && step[0] < items.length && validLabel(step[1]);
    history = Array.isArray(kept.history) ? kept.history.filter(fits) : [];
    if (Number.isInteger(kept.current) && kept.current >= 0 && kept.current < items.length) current = kept.current;
    unsaved = Boolean(kept.unsaved);
  }

  function showStorage() {
    const notice = element("storage");
    notice.hidden = storageWorks;
    if (!storageWorks) {
      notice.textContent =
        "This browser does not let the page keep its labels: save the csv before you close the tab, or they are lost.";
    }
  }

  // Labeling.

  function put(image, label) {
    if (labels[image] === label) return;
    history.push([image, labels[image]]);
    if (history.length > UNDO_DEPTH) history.shift();
    set(image, label);
  }

  function set(image, label) {
    labels[image] = label;
    unsaved = true;
    const complete = labels.every((given) => given !== null);
    element("saved").textContent = complete ? "Every image has a label. Save the csv (S)." : "";
    element("saved").hidden = !complete;
    keep();
    showCard(image);
    showCount();
  }

  function give(label) {
    if (!items.length || current === null) return;
    const image = current;
    put(image, label);
    const said = label === null ? "label removed" : nameOf(label);
    if (label === null) {
      choose(image);
    } else {
      step(1, image);
    }
    say(`${items[image].path}: ${said}. ${element("count").textContent}`);
  }

  function accept() {
    if (current === null) return;
    const suggestion = items[current].suggestion;
    if (suggestion === null) say("There is no suggestion for this image; press the key of its class.");
    else give(suggestion);
  }

  function undo() {
    const last = history.pop();
    if (!last) return;
    set(last[0], last[1]);
    choose(last[0]);
    say(`Undone: ${items[last[0]].path}. ${element("count").textContent}`);
  }

  // Moving.

  const visible = (image) => !onlyUnlabeled || labels[image] === null || image === current;

  function step(by, from) {
    for (let image = from + by; image >= 0 && image < items.length; image += by) {
      if (!onlyUnlabeled || labels[image] === null) return choose(image);
    }
    if (!onlyUnlabeled || labels[from] === null) return choose(from);
    // Behind the last one that is left, go to the first.
    const left = labels.indexOf(null);
    return choose(left === -1 ? null : left);
  }

  function stepRow(down) {
    if (current === null) return;
    const here = cards[current].getBoundingClientRect();
    let best = null;
    let bestCost = Infinity;
    cards.forEach((card, image) => {
      if (card.hidden) return;
      const there = card.getBoundingClientRect();
      const rows = down ? there.top - here.top : here.top - there.top;
      if (rows < 1) return;
      const cost = rows * 10000 + Math.abs(there.left - here.left);
      if (cost < bestCost) [best, bestCost] = [image, cost];
    });
    if (best !== null) choose(best);
  }

  function choose(image, focus = true) {
    const before = current;
    current = image;
    if (onlyUnlabeled) showFilter();
    for (const other of new Set([before, image])) if (other !== null) showCard(other);
    showCurrent();
    if (image !== null && focus) {
      cards[image].focus({ preventScroll: true });
      cards[image].scrollIntoView({ block: "nearest" });
    }
    keep();
  }

  // Drawing.

  function part(tag, className, text) {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function picture(target, item) {
    target.src = item.image;
    target.classList.toggle("pixels", item.small);
  }

  const scoresOf = (item) =>
    query.scores.map((name, place) => (item.scores[place] === "" ? "" : `${name} ${item.scores[place]}`)).filter(Boolean);

  function build() {
    query.groups.forEach((group, number) => {
      const box = part("div", "group");
      box.setAttribute("role", "group");
      const title = part("h2", "", group.title);
      title.id = `group-${number}`;
      title.dir = "auto";
      const size = part("span", "number", ` (${group.count})`);
      title.append(size);
      box.setAttribute("aria-labelledby", title.id);
      const grid = part("div", "grid");
      for (let image = group.start; image < group.start + group.count; image++) grid.append(buildCard(image));
      box.append(title, grid);
      images.append(box);
    });
    classes.forEach((entry, number) => element("choices").append(choice(entry.name, entry.key, number)));
    element("choices").append(choice(`${query.other.name}: none of these`, query.other.key, NONE));
  }

  function buildCard(image) {
    const item = items[image];
    const card = part("div", "card");
    card.setAttribute("role", "option");
    card.id = `image-${image}`;
    const thumbnail = part("img");
    thumbnail.alt = "";
    thumbnail.decoding = "async";
    thumbnail.loading = "lazy";
    picture(thumbnail, item);
    card.append(thumbnail, part("div", "mark"), part("div", "small", scoresOf(item)[0] || ""));
    card.addEventListener("click", () => choose(image));
    cards[image] = card;
    return card;
  }

  function choice(name, key, label) {
    const button = part("button");
    button.type = "button";
    button.dataset.label = String(label);
    if (key) {
      button.append(part("kbd", "", key), " ");
      button.setAttribute("aria-keyshortcuts", key);
    }
    button.append(part("bdi", "", name));
    button.title = name;
    button.addEventListener("click", () => give(label));
    return button;
  }

  function showCard(image) {
    const card = cards[image];
    const label = labels[image];
    const item = items[image];
    card.classList.toggle("done", label !== null && label !== NONE);
    card.classList.toggle("none", label === NONE);
    card.setAttribute("aria-selected", String(image === current));
    card.tabIndex = image === current ? 0 : -1;
    card.querySelector(".mark").textContent = label === null ? "" : `✓ ${nameOf(label)}`;
    const suggested = item.suggestion === null ? "" : `, suggested ${nameOf(item.suggestion)}`;
    card.setAttribute("aria-label", `${item.path}${suggested}, ${label === null ? "no label" : `label ${nameOf(label)}`}`);
  }

  function showCurrent() {
    const there = current !== null;
    element("preview").hidden = !there;
    for (const id of ["path", "scores", "label"]) element(id).textContent = "";
    for (const button of element("choices").children) {
      button.disabled = !there;
      button.setAttribute("aria-pressed", String(there && labels[current] === Number(button.dataset.label)));
    }
    if (!there) return;
    const item = items[current];
    picture(element("preview"), item);
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

  function say(text) {
    element("said").textContent = text;
  }

  // Saving.

  function csv() {
    const lines = items.map((item, image) => item.row + cellOf(labels[image]));
    return "\ufeff" + [query.heading, ...lines].map((line) => `${line}\r\n`).join("");
  }

  function save() {
    const address = URL.createObjectURL(new Blob([csv()], { type: "text/csv;charset=utf-8" }));
    const link = part("a");
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
      `Saved as ${query.file}. Next: give the command again with --labels and the path of that file` +
      (missing ? `; ${missing} of ${items.length} images have no label, so add --partial or label them first.` : ".");
    saved.hidden = false;
  }

  // Keys.

  const labelOfKey = new Map([[query.other.key, NONE]]);
  classes.forEach((entry, number) => entry.key && labelOfKey.set(entry.key, number));
  const actions = {
    ArrowLeft: () => current !== null && step(-1, current),
    ArrowRight: () => current !== null && step(1, current),
    ArrowUp: () => stepRow(false),
    ArrowDown: () => stepRow(true),
    Home: () => step(1, -1),
    End: () => step(-1, items.length),
    Enter: accept,
    Delete: () => give(null),
    Backspace: () => give(null),
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
    const act = labelOfKey.has(key) ? () => give(labelOfKey.get(key)) : actions[key];
    if (!act) return;
    event.preventDefault();
    if (event.repeat && !repeats.has(key)) return; // a key held down is not a label for the next images
    act();
  });
  element("filter").addEventListener("click", filter);
  element("undo").addEventListener("click", undo);
  element("save").addEventListener("click", save);
  window.addEventListener("storage", (event) => {
    // Another tab with this page: it knows more.
    if (event.key !== query.key || event.newValue === null) return;
    const here = current;
    restore(event.newValue);
    current = here;
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
