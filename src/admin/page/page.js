// Keeps the page up to date, and asks for stacks without leaving it.
//
// The server makes the whole page; this takes over what has changed of it, and leaves alone what has not, so
// that focus, selection and scrolled boxes stay as they are. Nothing is made of text here: what comes is parsed
// as a document of its own, in which nothing runs.

const PAUSE = 1000;

const board = document.getElementById("board");
const live = document.getElementById("live");

if (board) {
  follow();
  tellStacks();
}

// The board, every second, while somebody looks.
function follow() {
  const notice = document.createElement("span");
  const button = document.createElement("button");
  button.type = "button";
  live.replaceChildren(notice, button);
  let paused = false;
  // Since when nobody answers.
  let lost = null;
  show();

  button.addEventListener("click", () => {
    paused = !paused;
    show();
  });
  turn();

  async function turn() {
    if (!paused && !document.hidden) {
      try {
        const page = await load("/");
        if (!paused) {
          take(board, page.getElementById("board"));
          lost = null;
          say("Live");
        }
      } catch {
        // It is asked again: the gateway may only be restarting.
        lost ??= clock();
        say(`No answer since ${lost}`);
      }
    }
    setTimeout(turn, PAUSE);
  }

  function show() {
    button.textContent = paused ? "Go on" : "Pause";
    say(paused ? `Paused at ${clock()}` : "Live");
  }

  // Said aloud by screen readers, so only when it is something new.
  function say(text) {
    if (notice.textContent !== text) notice.textContent = text;
    notice.className = lost ? "lost" : "";
  }
}

function clock() {
  return new Date().toLocaleTimeString();
}

async function load(address) {
  const answer = await fetch(address, { signal: AbortSignal.timeout(5000) });
  if (!answer.headers.get("content-type")?.startsWith("text/html")) throw new Error(answer.status);
  return new DOMParser().parseFromString(await answer.text(), "text/html");
}

// Makes `old` the same as `fresh`, changing as little as that takes.
function take(old, fresh) {
  for (const { name } of [...old.attributes]) {
    if (!fresh.hasAttribute(name)) old.removeAttribute(name);
  }
  for (const { name, value } of fresh.attributes) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  const wanted = [...fresh.childNodes];
  wanted.forEach((node, place) => {
    const present = old.childNodes[place];
    if (!present) {
      old.append(document.importNode(node, true));
    } else if (present.nodeName !== node.nodeName) {
      present.replaceWith(document.importNode(node, true));
    } else if (node.nodeType === Node.TEXT_NODE) {
      if (present.data !== node.data) present.data = node.data;
    } else {
      take(present, node);
    }
  });
  while (old.childNodes.length > wanted.length) old.lastChild.remove();
}

// The links to stacks open a dialog. With a key held, they stay links.
function tellStacks() {
  const dialog = document.getElementById("stack");
  const told = document.getElementById("stack-told");
  let address = "";

  board.addEventListener("click", (event) => {
    const link = event.target.closest("a.stack");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
    event.preventDefault();
    address = link.getAttribute("href");
    dialog.showModal();
    ask();
  });
  document.getElementById("stack-again").addEventListener("click", ask);
  document.getElementById("stack-close").addEventListener("click", () => dialog.close());

  async function ask() {
    const asked = address;
    const title = document.createElement("h1");
    title.id = "stack-title";
    title.textContent = "Asking the worker…";
    told.replaceChildren(title);
    let answer;
    try {
      answer = (await load(asked)).getElementById("told").childNodes;
    } catch {
      title.textContent = "The gateway does not answer";
      return;
    }
    if (asked === address) told.replaceChildren(...[...answer].map((node) => document.importNode(node, true)));
  }
}
