// What Python can't do with the page in FiftyOne 1.22: go to a frame of the open video,
// light up an object while its row is pointed at, and group fields of the sidebar. A
// plain script without a build step; everything else of the plugin is Python.
(() => {
  const PLUGIN = "@fiftyone-regioncap/regioncap";
  const MILLISECONDS_BETWEEN_LOOKS = 100;
  const LOOKS = 600; // for a video to open
  const LOOKS_HELD = 15; // at a frame until the player stays there
  const { Operator, OperatorConfig, executeOperator, registerOperator } = window.__foo__;

  class PlayerOperator extends Operator {
    useHooks() {
      // Of the moment of each call, as the video may still be opening.
      return window.recoil.useRecoilCallback(
        ({ snapshot }) =>
          () =>
            snapshot.getLoadable(window.__fos__.modalLooker).contents,
        []
      );
    }
  }

  let asked = 0; // of the frames asked for, the last one counts

  class ShowFrame extends PlayerOperator {
    get config() {
      return new OperatorConfig({
        name: "show_frame",
        label: "Show a frame",
        unlisted: true,
      });
    }

    async execute({ hooks, params }) {
      const own = ++asked;
      let held = 0; // looks since the player was sent there
      for (let look = 0; look < LOOKS && own === asked && held < LOOKS_HELD; look++) {
        const looker = hooks();
        const open = looker?.state?.config?.sampleId === params.sample;
        if (open && looker.state.loaded && looker.seekToFrame) {
          if (!held) looker.pause();
          else if (looker.state.playing) return;
          // A timeline that begins after this sends the player back to its start.
          if (looker.state.frameNumber !== params.frame) looker.seekToFrame(params.frame);
          held++;
        }
        await new Promise((done) => setTimeout(done, MILLISECONDS_BETWEEN_LOOKS));
      }
    }
  }

  class PointAt extends PlayerOperator {
    get config() {
      return new OperatorConfig({
        name: "point_at",
        label: "Light an object up",
        unlisted: true,
      });
    }

    async execute({ hooks, params }) {
      const looker = hooks();
      if (!looker?.labelHoveredListener) return;
      if (!params.instance) {
        looker.labelUnhoveredListener();
        return;
      }
      // FiftyOne's listener fails on overlays without a label, as those of captions.
      const overlays = looker.currentOverlays;
      looker.currentOverlays = overlays.filter((overlay) => overlay.label);
      const labeled = looker.currentOverlays;
      looker.labelHoveredListener({ detail: { instanceId: params.instance } });
      if (looker.currentOverlays === labeled) looker.currentOverlays = overlays;
    }
  }

  class ArrangeSidebar extends Operator {
    get config() {
      return new OperatorConfig({
        name: "arrange_sidebar",
        label: "Group fields of the sidebar",
        unlisted: true,
      });
    }

    useHooks() {
      return window.recoil.useSetRecoilState(
        window.__fos__.sidebarGroupsDefinition(false)
      );
    }

    async execute({ hooks, params }) {
      const moved = new Set(params.groups.flatMap(({ paths }) => paths));
      const names = params.groups.map(({ name }) => name);
      const arrange = (groups) => [
        ...groups
          .filter(({ name }) => !names.includes(name))
          .map((group) => ({
            ...group,
            paths: group.paths.filter((path) => !moved.has(path)),
          })),
        ...params.groups.map((group) => ({ expanded: false, ...group })),
      ];
      hooks(arrange);
    }
  }

  registerOperator(ArrangeSidebar, PLUGIN);
  registerOperator(ShowFrame, PLUGIN);
  registerOperator(PointAt, PLUGIN);

  // A row names its object in a data attribute, which panels pass on to the page.
  let shown = null;
  document.addEventListener("mouseover", (event) => {
    const row = event.target.closest?.("[data-regioncap-instance]");
    const instance = row?.dataset.regioncapInstance || null;
    if (instance === shown) return;
    shown = instance;
    executeOperator(`${PLUGIN}/point_at`, { instance });
  });
})();
