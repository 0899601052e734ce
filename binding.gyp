# For tools that build addons through node-gyp: the build itself is CMake's, run by install.cjs. package.json sets
# "gypfile": false, so npm does not run this by itself.
{
  "targets": [
    {
      "target_name": "millrace",
      "type": "none",
      "actions": [
        {
          "action_name": "build_with_cmake",
          "inputs": ["CMakeLists.txt"],
          "outputs": ["build/Release/millrace.node"],
          "action": ["node", "install.cjs", "--force"]
        }
      ]
    }
  ]
}
