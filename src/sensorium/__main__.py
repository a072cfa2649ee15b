from sensorium.cli.main import main

main()
