"use strict";
// One stream of events for all tabs of a browser.
const tabs = new BroadcastChannel("retuned");
let isLost = false;
const follow = () => {
  const source = new EventSource("/events");
  source.onmessage = (event) => {
    isLost = false;
    tabs.postMessage(event.data);
  };
  source.onerror = () => {
    isLost = true;
    tabs.postMessage("lost");
    // The browser tries again by itself where the connection failed, and not where the daemon refused.
    if (source.readyState === EventSource.CLOSED) setTimeout(follow, 15000);
  };
};
onconnect = () => isLost && tabs.postMessage("lost");
follow();
